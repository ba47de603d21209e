"""report.html: what one run did, on a page, with what in it calls for attention."""

from __future__ import annotations

from rlkit.report.page import write as write
from rlkit.report.warnings import Warning as Warning
from rlkit.report.warnings import unhealthy as unhealthy
from rlkit.report.warnings import warnings_of as warnings_of
