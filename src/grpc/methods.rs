use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Extensions, Request, Response};
use prost::Message;
use prost_types::FileDescriptorSet;
use tower_layer::Layer;
use tower_service::Service;

use crate::config::ConfigError;
use crate::context::OrgContext;
use crate::context::observer::RequestObservation;
use crate::guard::{GuardFuture, permitted, rejection};
use crate::rejection::{Rejection, RejectionBody};
use crate::scope::ScopePolicy;

/// How rejections and logs name this layer.
const COMPONENT: &str = "`GrpcMethods`";

/// A guard that requires scopes by gRPC method. A method that is not listed is rejected.
///
/// Place it inside of [`ApiKeyLayer`](crate::ApiKeyLayer). Paths are compared exactly and as a whole, so a request whose path
/// is written in another way (without the first slash, with another case, with an escape) is no listed method.
///
/// | method | without a key | with a key |
/// |---|---|---|
/// | [`method`](GrpcMethodsBuilder::method) | rejected | passes if the key satisfies the policy |
/// | [`any_key`](GrpcMethodsBuilder::any_key) | rejected | passes |
/// | [`open`](GrpcMethodsBuilder::open) | passes, if the layer has [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) | passes |
/// | any other | rejected | rejected, whether the service has it or not |
///
/// See the [module documentation](crate::grpc) for an example.
#[derive(Clone, Debug)]
pub struct GrpcMethods {
    methods: Arc<HashMap<Box<str>, Access>>,
}

/// Who may call a method.
#[derive(Clone, Debug)]
enum Access {
    Open,
    AnyKey,
    Scopes(ScopePolicy),
}

impl GrpcMethods {
    /// Creates a builder without methods.
    pub fn builder() -> GrpcMethodsBuilder {
        GrpcMethodsBuilder::default()
    }

    /// Returns why a request may not call its method.
    fn rejection(&self, path: &str, extensions: &Extensions) -> Option<Rejection> {
        let rejection = match self.methods.get(path) {
            Some(Access::Open) => return None,
            Some(Access::AnyKey) => OrgContext::required_by(extensions, COMPONENT).err()?,
            Some(Access::Scopes(policy)) => {
                if permitted(extensions, policy).is_some() {
                    return None;
                }
                rejection(extensions, policy, COMPONENT)
            }
            None => match OrgContext::required_by(extensions, COMPONENT) {
                Ok(_) => Rejection::insufficient_scope::<&str>([]),
                Err(rejection) => rejection,
            },
        };
        Some(RequestObservation::rejected(extensions, rejection))
    }
}

/// Configures [`GrpcMethods`].
#[derive(Debug, Default)]
#[must_use]
pub struct GrpcMethodsBuilder {
    methods: Vec<(String, Access)>,
    described: Option<Result<BTreeSet<String>, ConfigError>>,
}

impl GrpcMethodsBuilder {
    /// Requires these scopes of calls to a method, which is named by its path: `/package.Service/Method`.
    pub fn method(self, path: impl Into<String>, policy: ScopePolicy) -> Self {
        self.with(path, Access::Scopes(policy))
    }

    /// Requires a key of an organization of calls to a method, with any scopes.
    pub fn any_key(self, path: impl Into<String>) -> Self {
        self.with(path, Access::AnyKey)
    }

    /// Opens a method to callers without a key.
    ///
    /// The layer around this one must have [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous). A key that is
    /// presented is verified nevertheless.
    pub fn open(self, path: impl Into<String>) -> Self {
        self.with(path, Access::Open)
    }

    /// Opens `/grpc.health.v1.Health/Check`. `Watch` stays closed, because each call is a stream without an end.
    pub fn open_health(self) -> Self {
        self.open("/grpc.health.v1.Health/Check")
    }

    /// Requires these scopes of calls to server reflection, `v1` and `v1alpha`, which lists all methods. Without this setting
    /// it is closed.
    pub fn reflection(self, policy: ScopePolicy) -> Self {
        self.method(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            policy.clone(),
        )
        .method(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            policy,
        )
    }

    /// Compares the methods with those of an encoded `FileDescriptorSet`, such as the one of server reflection
    /// (`tonic::include_file_descriptor_set!`). [`build`](Self::build) then fails if a described method has no entry here, or
    /// an entry names a method that is not described. Methods of the packages `grpc.health` and `grpc.reflection` need not be
    /// described.
    ///
    /// May be called more than once, if services are described in several sets.
    pub fn descriptor_set(mut self, encoded: &[u8]) -> Self {
        let read = FileDescriptorSet::decode(encoded)
            .map(|set| described(&set))
            .map_err(|error| {
                ConfigError::new(
                    "descriptor_set",
                    format!("is no FileDescriptorSet: {error}"),
                )
            });
        self.described = Some(match (self.described.take(), read) {
            (None, read) => read,
            (Some(Ok(mut before)), Ok(read)) => {
                before.extend(read);
                Ok(before)
            }
            (Some(Err(error)), _) | (_, Err(error)) => Err(error),
        });
        self
    }

    fn with(mut self, path: impl Into<String>, access: Access) -> Self {
        self.methods.push((path.into(), access));
        self
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// If a path is not of the form `/package.Service/Method` or is listed twice, or if the methods are not those of the
    /// [descriptor set](Self::descriptor_set).
    pub fn build(self) -> Result<GrpcMethods, ConfigError> {
        let mut methods = HashMap::with_capacity(self.methods.len());
        for (path, access) in self.methods {
            if !is_path(&path) {
                let problem = format!("`{path}` is not of the form `/package.Service/Method`");
                return Err(ConfigError::new("method", problem));
            }
            if methods.contains_key(&*path) {
                let problem = format!("`{path}` is listed twice");
                return Err(ConfigError::new("method", problem));
            }
            methods.insert(path.into_boxed_str(), access);
        }
        if let Some(described) = self.described {
            let described = described?;
            let paths = described.iter().map(String::as_str);
            if let Some(paths) = list(paths.filter(|path| !methods.contains_key(*path))) {
                let problem = format!("the descriptor set has methods without an entry: {paths}");
                return Err(ConfigError::new("descriptor_set", problem));
            }
            let paths = methods.keys().map(|path| &**path);
            if let Some(paths) =
                list(paths.filter(|path| !described.contains(*path) && !is_of_server(path)))
            {
                let problem = format!("the descriptor set does not have {paths}");
                return Err(ConfigError::new("descriptor_set", problem));
            }
        }
        Ok(GrpcMethods {
            methods: Arc::new(methods),
        })
    }
}

/// Returns the paths, sorted and separated by commas, or `None` if there are none.
fn list<'a>(paths: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut paths: Vec<String> = paths.map(|path| format!("`{path}`")).collect();
    paths.sort_unstable();
    (!paths.is_empty()).then(|| paths.join(", "))
}

/// Whether a path is one that gRPC servers add, and descriptor sets of applications do not have.
fn is_of_server(path: &str) -> bool {
    path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.")
}

fn is_path(path: &str) -> bool {
    let is_name = |name: &str, dots: bool| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || (dots && b == b'.'))
    };
    match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
        Some((service, method)) => is_name(service, true) && is_name(method, false),
        None => false,
    }
}

/// Returns the paths of all methods of a descriptor set.
fn described(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for file in &set.file {
        let package = match file.package() {
            "" => String::new(),
            package => format!("{package}."),
        };
        for service in &file.service {
            for method in &service.method {
                let (service, method) = (service.name(), method.name());
                paths.insert(format!("/{package}{service}/{method}"));
            }
        }
    }
    paths
}

impl<S> Layer<S> for GrpcMethods {
    type Service = GrpcMethodsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        GrpcMethodsService {
            inner,
            methods: self.clone(),
        }
    }
}

/// The service of [`GrpcMethods`].
#[derive(Clone, Debug)]
#[must_use]
pub struct GrpcMethodsService<S> {
    inner: S,
    methods: GrpcMethods,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for GrpcMethodsService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: RejectionBody,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = GuardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let rejection = self
            .methods
            .rejection(request.uri().path(), request.extensions());
        match rejection {
            None => GuardFuture::inner(self.inner.call(request)),
            Some(rejection) => GuardFuture::reject(rejection),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{FileDescriptorProto, MethodDescriptorProto, ServiceDescriptorProto};

    use super::*;
    use crate::rejection::RejectionKind;
    use crate::test_util::OrgContextBuilder;

    fn reports() -> GrpcMethodsBuilder {
        GrpcMethods::builder()
            .method("/reports.v1.Reports/List", ScopePolicy::new([["read"]]))
            .any_key("/reports.v1.Reports/Ping")
            .open_health()
    }

    fn set(methods: &[&str]) -> Vec<u8> {
        let method = |name: &&str| MethodDescriptorProto {
            name: Some((*name).to_owned()),
            ..Default::default()
        };
        let service = ServiceDescriptorProto {
            name: Some("Reports".to_owned()),
            method: methods.iter().map(method).collect(),
            ..Default::default()
        };
        let file = FileDescriptorProto {
            package: Some("reports.v1".to_owned()),
            service: vec![service],
            ..Default::default()
        };
        FileDescriptorSet { file: vec![file] }.encode_to_vec()
    }

    #[test]
    fn fault_119_only_the_exact_path_is_the_method() {
        let methods = reports().build().unwrap();
        let mut extensions = Extensions::new();
        extensions.insert(OrgContextBuilder::new("org_1").scopes(["read"]).build());
        let kind = |path| methods.rejection(path, &extensions).map(|r| r.kind());
        for path in [
            "/reports.v1.Reports/List",
            "/reports.v1.Reports/Ping",
            "/grpc.health.v1.Health/Check",
        ] {
            assert_eq!(kind(path), None, "{path}");
        }
        for path in [
            "reports.v1.Reports/List",
            "//reports.v1.Reports/List",
            "/reports.v1.Reports/List/",
            "/reports.v1.Reports/list",
            "/reports.v1.Reports/%4Cist",
            "/reports.v1.Reports/Delete",
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/",
            "",
        ] {
            assert_eq!(kind(path), Some(RejectionKind::InsufficientScope), "{path}");
        }
    }

    #[test]
    fn only_open_methods_need_no_key() {
        let methods = reports().build().unwrap();
        let mut extensions = Extensions::new();
        extensions.insert(crate::context::Anonymous);
        let kind = |path| methods.rejection(path, &extensions).map(|r| r.kind());
        assert_eq!(kind("/grpc.health.v1.Health/Check"), None);
        for path in [
            "/reports.v1.Reports/List",
            "/reports.v1.Reports/Ping",
            "/x/y",
        ] {
            assert_eq!(kind(path), Some(RejectionKind::CredentialMissing), "{path}");
        }
    }

    #[test]
    fn methods_and_descriptor_set_must_agree() {
        let problem = |builder: GrpcMethodsBuilder| builder.build().err().map(|e| e.to_string());
        assert_eq!(
            problem(reports().descriptor_set(&set(&["List", "Ping"]))),
            None
        );
        let missing = problem(reports().descriptor_set(&set(&["List", "Ping", "Delete", "Add"])));
        let missing = missing.unwrap();
        assert!(
            missing.ends_with("`/reports.v1.Reports/Add`, `/reports.v1.Reports/Delete`"),
            "{missing}"
        );
        let unknown = problem(reports().descriptor_set(&set(&["List"]))).unwrap();
        assert!(
            unknown.ends_with("does not have `/reports.v1.Reports/Ping`"),
            "{unknown}"
        );
        let twice = reports()
            .descriptor_set(&set(&["List"]))
            .descriptor_set(&set(&["Ping"]));
        assert_eq!(problem(twice), None);
        assert!(problem(reports().descriptor_set(b"\xff\xff")).is_some());
    }

    #[test]
    fn invalid_methods_are_not_built() {
        for path in [
            "",
            "/",
            "reports.Reports/List",
            "/a/",
            "/a/b/c",
            "/a b/c",
            "/*/List",
            "/a/b?x",
        ] {
            let built = GrpcMethods::builder().any_key(path).build();
            assert_eq!(built.unwrap_err().field(), "method", "{path}");
        }
        let twice = reports().open("/reports.v1.Reports/List").build();
        assert!(twice.is_err());
    }
}
