//! The same as an ordinary user: through fusermount3, and as root of a user namespace.

use e2e::require;
use e2e::user::{Role, run_again, run_with_catalogs};

const PLAIN_DIRECTORY: &str = "random_histories_equal_a_plain";

#[test]
fn as_an_ordinary_user_through_fusermount3() {
    require!(Fuse, Union, Root, Tester);
    run_again(Role::Plain, PLAIN_DIRECTORY);
}

#[test]
fn as_root_of_a_user_namespace_with_ranges() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::Namespace, PLAIN_DIRECTORY);
}

#[test]
fn as_root_of_a_user_namespace_with_one_id() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::SingleId, PLAIN_DIRECTORY);
}

#[test]
fn with_catalogs_of_all_lowers() {
    require!(Fuse, Union);
    run_with_catalogs(None, PLAIN_DIRECTORY);
}

#[test]
fn with_catalogs_of_all_lowers_as_root_of_a_user_namespace() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_with_catalogs(Some(Role::Namespace), PLAIN_DIRECTORY);
}
