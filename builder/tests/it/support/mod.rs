//! What every test of this program stands on: real servers, a private home, an independent reader and comparer.

pub(crate) mod alike;
pub(crate) mod archive;
pub(crate) mod case;
pub(crate) mod compare;
pub(crate) mod container;
pub(crate) mod counted;
pub(crate) mod disk;
pub(crate) mod expected;
pub(crate) mod home;
pub(crate) mod host;
pub(crate) mod lab;
pub(crate) mod leftovers;
pub(crate) mod skip;
pub(crate) mod tar;
pub(crate) mod terminal;
