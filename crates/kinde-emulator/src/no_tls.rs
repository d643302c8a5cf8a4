//! Takes the place of `tls` when the feature is off. Its types have no values, so no connection uses TLS.

use std::io;

use crate::connection::Connection;

#[derive(Clone, Debug)]
pub(crate) enum CertificateSpec {}

#[derive(Clone)]
pub(crate) enum Acceptor {}

impl Acceptor {
    #[allow(clippy::unused_async)] // The signature of `TlsAcceptor::accept`.
    pub(crate) async fn accept(&self, _: Connection) -> io::Result<Connection> {
        match *self {}
    }
}

pub(crate) fn acceptor(spec: &CertificateSpec) -> io::Result<(Acceptor, String)> {
    match *spec {}
}
