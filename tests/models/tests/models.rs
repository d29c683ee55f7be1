//! What must hold in every execution.

use models::{Model, explore};

const ONE_WAY: Model = Model { requests: 2, batch: 1, stop_after: None, frontend_sleeps: false };

#[test]
fn no_request_is_overlooked_by_a_sleeping_backend() {
    let executions = explore(ONE_WAY, Some(4));
    println!("{executions} executions");
    assert!(executions > 100);
}

#[test]
fn no_answer_is_overlooked_by_a_sleeping_frontend() {
    let executions = explore(Model { frontend_sleeps: true, ..ONE_WAY }, Some(3));
    println!("{executions} executions");
    assert!(executions > 100);
}

#[test]
fn slots_are_used_again_only_after_their_answers_were_taken() {
    let model = Model { requests: 3, batch: 2, stop_after: None, frontend_sleeps: true };
    let executions = explore(model, Some(2));
    println!("{executions} executions");
    assert!(executions > 100);
}

#[test]
fn a_backend_stopped_after_any_store_is_continued_under_a_running_frontend() {
    let mut executions = 0;
    for stores in 0..=14 {
        let model = Model { requests: 2, batch: 2, stop_after: Some(stores), frontend_sleeps: true };
        executions += explore(model, Some(2));
    }
    println!("{executions} executions");
    assert!(executions > 1000);
}
