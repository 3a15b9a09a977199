//! The contract of the command: what container engines, mount(8) and people rely on.

mod background;
mod errors;
mod plugins;

use e2e::require;
use e2e::user::{Role, run_again};

#[test]
fn as_an_ordinary_user_through_fusermount3() {
    require!(Fuse, Union, Root, Tester);
    run_again(Role::Plain, "background::");
    run_again(Role::Plain, "plugins::");
}

#[test]
fn as_root_of_a_user_namespace_with_ranges() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::Namespace, "background::");
    run_again(Role::Namespace, "plugins::");
}

#[test]
fn as_root_of_a_user_namespace_with_one_id() {
    require!(Fuse, Union, Root, Tester, UserNamespace);
    run_again(Role::SingleId, "background::");
}
