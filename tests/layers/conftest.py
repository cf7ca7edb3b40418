"""The shared checks are rewritten as tests are, so that their failures show values."""

import pytest

pytest.register_assert_rewrite("contracts")
