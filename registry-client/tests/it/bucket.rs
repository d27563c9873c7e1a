//! An S3 server on loopback with one bucket and one user (testdata/tools/bucket.py). It checks signatures and rights.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kiln_registry_client::s3::{AwsCredentials, BucketOptions};

use crate::serving::Serving;

/// The running server, until it is dropped.
pub(crate) struct S3Server {
    serving: Serving,
    options: BucketOptions,
}

impl S3Server {
    /// Starts one; `None`, and a line that says why, when this machine can't.
    pub(crate) fn start() -> Option<Self> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/tools");
        let ready = Command::new("python3").arg("-c").arg(INSTALLED).arg(&tools).status().is_ok_and(|status| status.success());
        if !ready {
            eprintln!("skipped: {}: moto is not installed", std::thread::current().name().unwrap_or_default());
            return None;
        }
        let serving = Serving::start(&["python3"], |_, port| {
            let mut command = Command::new("python3");
            command.arg(tools.join("bucket.py")).arg("serve").arg(port.to_string());
            command
        })?;
        let started = Instant::now();
        let line = loop {
            let text = fs::read_to_string(serving.folder().join("output")).unwrap();
            if let Some(line) = text.lines().find(|line| line.starts_with('{')) {
                break line.to_owned();
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{text}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| said[key].as_str().unwrap().to_owned();
        let credentials = AwsCredentials { access_key_id: text("key"), secret_access_key: text("secret"), session_token: None };
        let options = BucketOptions {
            bucket: text("bucket"),
            region: "us-east-1".to_owned(),
            endpoint: Some(text("endpoint")),
            path_style: true,
            credentials,
            attempts: None,
        };
        Some(Self { serving, options })
    }

    /// How it is reached, through `host` if it isn't its own.
    pub(crate) fn options(&self, host: Option<&str>) -> BucketOptions {
        let own = self.serving.host();
        BucketOptions { endpoint: Some(format!("http://{}", host.unwrap_or(&own))), ..self.options.clone() }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.serving.host()
    }
}

const INSTALLED: &str =
    "import sys, os; sys.path.insert(0, sys.argv[1]); import bucket; sys.exit(not os.path.exists(bucket.home() + '/complete'))";
