"""The product's settings for benchmarks: one more app and view, and no provider's rate limit.

What limits is to be the product: a provider that takes ten submissions a second would be what
is measured.
"""

from picture import settings as product
from picture.settings import *  # noqa: F403

INSTALLED_APPS = [*product.INSTALLED_APPS, "benchmarks"]
ROOT_URLCONF = "benchmarks.urls"
PROVIDER_POOLS = {"replicate": {"capacity": 10_000}, "instant": {"capacity": 10_000}}
