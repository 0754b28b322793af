"""billing. In: intervals of jobs, answers of models, the price book. Out: estimates, meters, budgets and reports per tenant."""
