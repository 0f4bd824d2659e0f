"""What all tests share: properties are judged by what they find, never by how long a busy machine takes to find it."""

from hypothesis import HealthCheck, settings

settings.register_profile("pelamis", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pelamis")
