"""CPU and memory of pods: requests and limits as control groups, CPUs of their own, resizes in place."""
