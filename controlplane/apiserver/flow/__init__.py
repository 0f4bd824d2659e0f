"""Priority and fairness: whose request comes next when there are more than seats."""
