//! Each of these faults in the ring must make a model fail.

use models::{Model, explore};
use ring::mutation::{Mutation, with};

fn must_fail(mutation: Mutation) {
    let model = Model { requests: 2, batch: 1, stop_after: None, frontend_sleeps: true };
    with(Some(mutation), || explore(model, Some(3)));
}

#[test]
#[should_panic]
fn publishing_without_a_fence() {
    must_fail(Mutation::NoPublishFence);
}

#[test]
#[should_panic]
fn arming_without_a_fence() {
    must_fail(Mutation::NoArmFence);
}

#[test]
#[should_panic]
fn waiting_without_looking_again() {
    must_fail(Mutation::NoRecheck);
}

#[test]
#[should_panic]
fn storing_the_index_without_release() {
    must_fail(Mutation::RelaxedStore);
}

#[test]
#[should_panic]
fn loading_the_index_without_acquire() {
    must_fail(Mutation::RelaxedLoad);
}

#[test]
#[should_panic]
fn moving_the_index_before_the_slots() {
    must_fail(Mutation::IndexFirst);
}
