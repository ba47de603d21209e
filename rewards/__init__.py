"""The rewards that come with rlkit. They reach it by entry points, as a stranger's would."""
