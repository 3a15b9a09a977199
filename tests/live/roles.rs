//! The same as an ordinary user: through fusermount3, and as root of a user namespace.

use e2e::require;
use e2e::user::{Role, run_again};

const TESTS: &str = "rotated";

#[test]
fn as_an_ordinary_user_through_fusermount3() {
    require!(Fuse, Union, Root, Tester);
    run_again(Role::Plain, TESTS);
    run_again(Role::Plain, "may_not_list");
}

#[test]
fn as_root_of_a_user_namespace_with_ranges() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::Namespace, TESTS);
}

#[test]
fn as_root_of_a_user_namespace_with_one_id() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::SingleId, TESTS);
}
