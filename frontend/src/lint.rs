//! Hides the build checks: their names, their words, and which of them a `# check=` line switches off.

use std::collections::BTreeSet;

macro_rules! rules {
    ($($variant:ident $experimental:literal $url:literal $description:literal;)*) => {
        /// A build check, under BuildKit's name for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $description] $variant,)*
        }

        impl Rule {
            /// Every rule, in BuildKit's order.
            pub const ALL: &'static [Rule] = &[$(Rule::$variant,)*];

            /// The name, such as `StageNameCasing`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Rule::$variant => stringify!($variant),)* }
            }

            /// One sentence on what the rule wants.
            #[must_use]
            pub fn description(self) -> &'static str {
                match self { $(Rule::$variant => $description,)* }
            }

            /// Where the rule is explained; empty when BuildKit has no page for it.
            #[must_use]
            pub fn url(self) -> &'static str {
                match self { $(Rule::$variant => $url,)* }
            }

            /// Whether the rule is off unless `# check=experimental=` names it.
            #[must_use]
            pub fn is_experimental(self) -> bool {
                match self { $(Rule::$variant => $experimental,)* }
            }
        }
    };
}

rules! {
    StageNameCasing false "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/" "Stage names should be lowercase";
    FromAsCasing false "https://docs.docker.com/go/dockerfile/rule/from-as-casing/" "The 'as' keyword should match the case of the 'from' keyword";
    NoEmptyContinuation false "https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/" "Empty continuation lines will become errors in a future release";
    ConsistentInstructionCasing false "https://docs.docker.com/go/dockerfile/rule/consistent-instruction-casing/" "All commands within the Dockerfile should use the same casing (either upper or lower)";
    DuplicateStageName false "https://docs.docker.com/go/dockerfile/rule/duplicate-stage-name/" "Stage names should be unique";
    ReservedStageName false "https://docs.docker.com/go/dockerfile/rule/reserved-stage-name/" "Reserved words should not be used as stage names";
    JSONArgsRecommended false "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/" "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    MaintainerDeprecated false "https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/" "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    UndefinedArgInFrom false "https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/" "FROM command must use declared ARGs";
    WorkdirRelativePath false "https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/" "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
    UndefinedVar false "https://docs.docker.com/go/dockerfile/rule/undefined-var/" "Variables should be defined before their use";
    MultipleInstructionsDisallowed false "https://docs.docker.com/go/dockerfile/rule/multiple-instructions-disallowed/" "Multiple instructions of the same type should not be used in the same stage";
    LegacyKeyValueFormat false "https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/" "Legacy key/value format with whitespace separator should not be used";
    InvalidBaseImagePlatform false "" "Base image platform does not match expected target platform";
    RedundantTargetPlatform false "https://docs.docker.com/go/dockerfile/rule/redundant-target-platform/" "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    SecretsUsedInArgOrEnv false "https://docs.docker.com/go/dockerfile/rule/secrets-used-in-arg-or-env/" "Sensitive data should not be used in the ARG or ENV commands";
    InvalidDefaultArgInFrom false "https://docs.docker.com/go/dockerfile/rule/invalid-default-arg-in-from/" "Default value for global ARG results in an empty or invalid base image name";
    FromPlatformFlagConstDisallowed false "https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/" "FROM --platform flag should not use a constant value";
    CopyIgnoredFile true "https://docs.docker.com/go/dockerfile/rule/copy-ignored-file/" "Attempting to Copy file that is excluded by .dockerignore";
    InvalidDefinitionDescription true "https://docs.docker.com/go/dockerfile/rule/invalid-definition-description/" "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    ExposeProtoCasing false "https://docs.docker.com/go/dockerfile/rule/expose-proto-casing/" "Protocol in EXPOSE instruction should be lowercase";
    ExposeInvalidFormat false "https://docs.docker.com/go/dockerfile/rule/expose-invalid-format/" "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
}

/// What `# check=…` or `BUILDKIT_DOCKERFILE_CHECK` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Rules that say nothing.
    pub skip: BTreeSet<String>,
    /// Whether no rule says anything.
    pub skip_all: bool,
    /// Experimental rules that are on.
    pub experimental: BTreeSet<String>,
    /// Whether all experimental rules are on.
    pub experimental_all: bool,
    /// Whether a rule that fires stops the build.
    pub error: bool,
}

impl Config {
    /// Reads `skip=A,B;error=true;experimental=all`.
    ///
    /// # Errors
    /// A sentence on the part that makes no sense.
    pub fn parse(text: &str) -> Result<Config, String> {
        let mut config = Config::default();
        if text.trim().is_empty() {
            return Ok(config);
        }
        for option in text.trim().split(';') {
            let Some((key, value)) = option.split_once('=') else {
                return Err(format!("invalid check option {option:?}"));
            };
            let names = || value.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty());
            match key.trim() {
                "skip" if value.trim() == "all" => config.skip_all = true,
                "skip" => config.skip.extend(names()),
                "experimental" if value.trim() == "all" => config.experimental_all = true,
                "experimental" => config.experimental.extend(names()),
                "error" => {
                    config.error = match value.trim() {
                        "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
                        "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
                        other => {
                            return Err(format!("failed to parse check option {option:?}: {other:?} is no boolean"));
                        }
                    };
                }
                other => return Err(format!("invalid check option {other:?}")),
            }
        }
        Ok(config)
    }

    /// Whether a rule may speak.
    #[must_use]
    pub fn allows(&self, rule: Rule) -> bool {
        if rule.is_experimental() && !self.experimental_all && !self.experimental.contains(rule.name()) {
            return false;
        }
        !self.skip_all && !self.skip.contains(rule.name())
    }
}

/// Whether the name of a variable says that its value is a secret.
pub(crate) fn names_a_secret(name: &str) -> bool {
    const SECRET: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let has = |words: &[&str]| name.split('_').any(|part| words.iter().any(|word| word.eq_ignore_ascii_case(part)));
    has(&SECRET) && !has(&HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let config = Config::parse("skip=UndefinedVar, JSONArgsRecommended;error=true").unwrap();
        assert!(config.error && !config.allows(Rule::UndefinedVar) && config.allows(Rule::StageNameCasing));
        assert!(!config.allows(Rule::CopyIgnoredFile));
        assert!(Config::parse("experimental=all").unwrap().allows(Rule::CopyIgnoredFile));
        assert!(!Config::parse("skip=all").unwrap().allows(Rule::StageNameCasing));
        assert_eq!(Config::parse("  ").unwrap(), Config::default());
        for text in ["foo=bar", "SKIP=all", "skip", "error=true;", ";error=true"] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
        assert!(Config::parse("error=x").is_err());
        assert_eq!(Rule::ALL.len(), 22);
    }

    #[test]
    fn secrets() {
        for (name, want) in [
            ("API_KEY", true),
            ("apikey", true),
            ("GITHUB_TOKEN", true),
            ("PUBLIC_KEY", false),
            ("KEY_FILE", false),
            ("TOKEN_VERSION", false),
            ("KEYBOARD", false),
            ("MONKEY", false),
        ] {
            assert_eq!(names_a_secret(name), want, "{name}");
        }
    }
}
