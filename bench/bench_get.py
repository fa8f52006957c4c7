"""The flow that is measured: one GET, after saying when its first line ran."""

import os
import time

import requests
from prefect import flow


@flow(log_prints=True)
def bench_get() -> int:
    """Asks the stack's own upstream once; returns the answer's status."""
    print(f"began {time.time():.6f}")
    response = requests.get(os.environ["ACTIVITY_API_URL"], timeout=10)
    response.raise_for_status()
    return response.status_code
