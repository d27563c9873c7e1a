//! `USER`: hides the syntax and the passwd and group files. Pure; the files come in as bytes.

/// Why a user could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such name, and it is not a number.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// No such group, and it is not a number.
    #[error("unable to find group {name}: no matching entries in group file")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A number outside of what the kernel takes.
    #[error("user or group id {id} is out of range, 0 to 2147483647 are possible")]
    OutOfRange {
        /// The number as it was written.
        id: String,
    },
}
