"""The end of a window on what a node may lie on (see ``test_e2e_file_systems``)."""

from __future__ import annotations

import pytest
from test_e2e_expiry import (  # noqa: F401 - the same on each of them
    config,
    test_commit_in_time_stops_the_rollback,
    test_expiry_keeps_owner_mode_xattrs_and_acl_when_content_is_replaced,
    test_expiry_removes_what_is_declared_absent,
    test_expiry_restores_a_deleted_file,
    test_expiry_restores_a_directory_and_what_was_in_it,
    test_expiry_restores_a_symbolic_link,
    test_expiry_restores_an_acl_and_an_attribute_alone,
    test_expiry_restores_content_and_says_so_in_the_journal,
    test_expiry_restores_mode_owner_and_group,
    test_expiry_restores_what_was_replaced_by_rename,
)
from test_e2e_file_systems import file_system  # noqa: F401

pytestmark = pytest.mark.needs("setfacl", "setfattr")
