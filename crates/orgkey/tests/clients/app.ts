/** The application under test. It knows the issuer only by its settings. */
export class App {
  readonly #issuerUrl: string;
  readonly #credentials: Record<string, string>;

  constructor(issuerUrl: string, clientId: string, clientSecret: string) {
    this.#issuerUrl = issuerUrl;
    this.#credentials = { client_id: clientId, client_secret: clientSecret };
  }

  /** Returns the organization of a valid key, or `undefined`. Throws if the issuer cannot tell. */
  async organizationOf(key: string): Promise<string | undefined> {
    const form = new URLSearchParams({
      grant_type: "client_credentials",
      audience: `${this.#issuerUrl}/api`,
      ...this.#credentials,
    });
    const token = await this.#post("/oauth2/token", {}, form);
    const headers = { Authorization: `Bearer ${token.access_token}`, "Content-Type": "application/json" };
    const answer = await this.#post("/api/v1/api_keys/verify", headers, JSON.stringify({ api_key: key }));
    return answer.is_valid === true && answer.status === "active" ? (answer.org_code as string) : undefined;
  }

  async #post(path: string, headers: HeadersInit, body: BodyInit): Promise<Record<string, unknown>> {
    const reply = await fetch(this.#issuerUrl + path, { method: "POST", headers, body });
    if (!reply.ok) {
      throw new Error(`${path}: ${reply.status}`);
    }
    return (await reply.json()) as Record<string, unknown>;
  }
}
