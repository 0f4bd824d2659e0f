"""DaemonSets: one pod on every node that shall have one."""
