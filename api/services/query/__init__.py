"""Any condition over datasets, slices, densities and labels, and how columns are compared."""
