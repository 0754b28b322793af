"""console. In: a browser. Out: pages made on the server: jobs with a live curve, data-set reports, models with lineage and gates, usage, audit."""
