"""export. In: a registered version. Out: `exported_model`, merged or quantised, with a report of its own. Invariant: nothing is registered that was not compared with what it was made from."""
