"""serve. In: registered models. Out: `deployment` and answers. Invariant: only verified bytes of a permitted stage are loaded."""
