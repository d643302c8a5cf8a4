use std::net::{IpAddr, SocketAddr};

/// Where a request comes from.
///
/// ```
/// use std::net::{IpAddr, Ipv4Addr};
/// use tower_orgkey_audit::AuditPeer;
///
/// let peer = AuditPeer::from(IpAddr::from(Ipv4Addr::LOCALHOST));
/// assert_eq!((peer.ip(), peer.port()), (Ipv4Addr::LOCALHOST.into(), None));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuditPeer {
    ip: IpAddr,
    port: Option<u16>,
}

impl AuditPeer {
    /// Returns the address. An IPv4-mapped IPv6 address is returned as an IPv4 address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Returns the port, if it is known.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl From<IpAddr> for AuditPeer {
    fn from(ip: IpAddr) -> Self {
        Self {
            ip: ip.to_canonical(),
            port: None,
        }
    }
}

impl From<SocketAddr> for AuditPeer {
    fn from(address: SocketAddr) -> Self {
        Self {
            port: Some(address.port()),
            ..address.ip().into()
        }
    }
}
