use tower_orgkey::ApiKeyLayer;

struct Config;

fn main() {
    let _ = ApiKeyLayer::new(Config);
}
