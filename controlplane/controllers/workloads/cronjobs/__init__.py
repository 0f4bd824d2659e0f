"""CronJobs: a Job whenever it is time."""
