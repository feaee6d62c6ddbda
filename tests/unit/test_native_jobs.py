"""Memory decides how many compilers run at once."""

import pytest

from sparkwright.native.jobs import default_jobs, job_count


@pytest.mark.parametrize(
    ("gigabytes", "cores", "expected"),
    [
        (3, 2, 1),
        (22, 2, 2),
        (22, 16, 2),
        (64, 16, 6),
        (119, 20, 12),
        (500, 20, 20),
    ],
)
def test_jobs_fit_the_memory_and_the_cores(gigabytes: int, cores: int, expected: int) -> None:
    assert job_count(available=gigabytes * 10**9, cores=cores) == expected


def test_this_machine_gets_at_least_one_job() -> None:
    assert default_jobs() >= 1
