//! Tests of the ring as a journal. `world` is a ring page and a survivor page with two ends that can be interleaved at
//! every access and a back end that can be killed after every store; the other modules say what must hold in it.

mod corrupt;
mod crash;
mod lies;
mod mutations;
mod steps;
mod world;
