"""How good a model is: on problems of its task while it trains, and on benchmark suites; and what verifiers say."""
