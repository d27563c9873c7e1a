//! Hides which certificates are believed and shown: the system's authorities, a registry's own files, and Mozilla's list where the
//! host has none (an image made `FROM scratch` has no `/etc/ssl`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::ErrorKind;
use crate::transport::Trust;

/// The TLS settings for connections that trust the system's authorities and those of `trust`; all certificates when
/// `skip_verify`.
pub(crate) fn config(trust: &Trust) -> Result<ClientConfig, ErrorKind> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| ErrorKind::Setting(format!("TLS: {error}")))?;
    let mut authorities: Vec<PathBuf> = trust.ca_file.iter().cloned().collect();
    let mut shown = trust.client_certificate.clone();
    for certs in &trust.certs {
        for path in files(&certs.folder)? {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => authorities.push(path),
                Some("cert") if certs.shown && shown.is_none() => shown = Some((path.clone(), path.with_extension("key"))),
                _ => {}
            }
        }
    }
    let verifier: Arc<dyn ServerCertVerifier> =
        if trust.skip_verify { Arc::new(NoVerifier(provider)) } else { Arc::new(Verifier::new(provider, &authorities)?) };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let fail = |path: &Path, cause: String| ErrorKind::CaFile { path: path.to_owned(), cause };
            let chain = read_certificates(&certificate)?;
            let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| fail(&key, error.to_string()))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| fail(&certificate, error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The files of a folder by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ErrorKind> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut names: Vec<_> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        names.sort();
        Ok(names)
    };
    list().map_err(|error| ErrorKind::CaFile { path: folder.to_owned(), cause: error.to_string() })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ErrorKind> {
    let fail = |cause: String| ErrorKind::CaFile { path: path.to_owned(), cause };
    let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| fail(error.to_string()))?;
    if certificates.is_empty() { Err(fail("it holds no PEM certificate".to_owned())) } else { Ok(certificates) }
}

/// webpki's verifier, with one addition: a certificate that stands itself in one of the registry's files is believed for its names.
/// `openssl req -x509`, which registry guides recommend, makes certificates that are authority and server at once; Go takes
/// them and webpki does not (`CaUsedAsEndEntity`).
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(provider: Arc<CryptoProvider>, authorities: &[PathBuf]) -> Result<Self, ErrorKind> {
        let mut roots = RootCertStore::empty();
        // A certificate that webpki can't parse is left out: system bundles have some.
        let (native, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if native == 0 {
            roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        }
        let mut pinned = Vec::new();
        for path in authorities {
            pinned.extend(read_certificates(path)?);
        }
        roots.add_parsable_certificates(pinned.iter().cloned());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| ErrorKind::Setting(format!("TLS: {error}")))?;
        Ok(Self { webpki, pinned })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match &verdict {
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_) | CertificateError::UnknownIssuer))
                if self.pinned.iter().any(|pinned| pinned == end_entity) =>
            {
                let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            _ => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// For `insecure_skip_verify`: believes any certificate, but still that its owner is at the other end.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
