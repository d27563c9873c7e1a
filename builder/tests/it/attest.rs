//! What is said of an image beside it: how it was built, and what is in it; read by the programs of others.

mod rpm;
