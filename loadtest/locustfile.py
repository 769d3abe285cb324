"""What `locust -f` loads."""

from loadtest.users import MixedUser

__all__ = ["MixedUser"]
