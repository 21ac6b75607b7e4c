import { createHash, createHmac, type Hash, type Hmac } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { afterEach, expect, it, vi } from "vitest";
import { selfInvoke } from "../../src/adapters/self-invoke.ts";
import { packageOfOsls } from "../support/osls.ts";

const credentials = { accessKeyId: "AKIDEXAMPLE", secretAccessKey: "a+secret/key", sessionToken: "a/token==" };
const report = { ms: 1, consumers: [] };

afterEach(() => void vi.unstubAllEnvs());

it("is signed as AWS's own SDK signs it, and leaves no connection behind", async () => {
  await using api = await startApi(202);
  const places = [
    { id: "a", until: 1 },
    { id: "b", until: 2, depth: 3 },
  ];
  await selfInvoke()(places, report);
  expect(api.requests.map(({ body }) => JSON.parse(body))).toEqual(places);
  for (const { headers, method, url, body } of api.requests) {
    expect({ method, url }).toEqual({
      method: "POST",
      url: "/2015-03-31/functions/sample-pull/invocations?Qualifier=7",
    });
    expect(headers).toMatchObject({ "x-amz-invocation-type": "Event", connection: "close" });
    expect(headers.authorization).toBe(await signedBySdk(headers, body));
  }
});

it("says what Lambda refused, and what to allow", async () => {
  await using _api = await startApi(403);
  await expect(selfInvoke()([{ id: "a", until: 1 }], report)).rejects.toThrow(
    /sample-pull.*expected HTTP 202, got 403 \(AccessDeniedException\).*lambda:InvokeFunction/,
  );
});

it("says so where it does not run in Lambda", async () => {
  await expect(selfInvoke()([{ id: "a", until: 1 }], report)).rejects.toMatchObject({ code: "not-configured" });
});

/** Stands for Lambda's Invoke API. */
async function startApi(status: number) {
  const requests: (Pick<IncomingMessage, "method" | "url" | "headers"> & { body: string })[] = [];
  const server = createServer(async (request, response) => {
    const { method, url, headers } = request;
    requests.push({ method, url, headers, body: await text(request) });
    response.writeHead(status, status === 202 ? {} : { "x-amzn-errortype": "AccessDeniedException" }).end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  vi.stubEnv("AWS_ENDPOINT_URL_LAMBDA", `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  vi.stubEnv("AWS_REGION", "eu-central-1");
  vi.stubEnv("AWS_LAMBDA_FUNCTION_NAME", "sample-pull");
  vi.stubEnv("AWS_LAMBDA_FUNCTION_VERSION", "7");
  vi.stubEnv("AWS_ACCESS_KEY_ID", credentials.accessKeyId);
  vi.stubEnv("AWS_SECRET_ACCESS_KEY", credentials.secretAccessKey);
  vi.stubEnv("AWS_SESSION_TOKEN", credentials.sessionToken);
  return {
    requests,
    async [Symbol.asyncDispose]() {
      server.close(); // ends by itself: no connection is kept
      await once(server, "close");
    },
  };
}

interface SignatureV4 {
  sign(request: object, options: object): Promise<{ headers: Record<string, string> }>;
}

/** What the SDK that comes with osls makes of the same request. */
async function signedBySdk(headers: IncomingMessage["headers"], body: string): Promise<string | undefined> {
  const sdk = packageOfOsls("@smithy/signature-v4") as { SignatureV4: new (options: object) => SignatureV4 };
  const signer = new sdk.SignatureV4({ credentials, region: "eu-central-1", service: "lambda", sha256: Sha256 });
  const { host, "x-amz-date": time = "", "x-amz-invocation-type": type } = headers;
  const signingDate = new Date(`${time}`.replace(/(....)(..)(.....)(..)(..Z)/, "$1-$2-$3:$4:$5"));
  const request = {
    method: "POST",
    protocol: "http:",
    hostname: "127.0.0.1",
    path: "/2015-03-31/functions/sample-pull/invocations",
    query: { Qualifier: "7" },
    headers: { host, "x-amz-invocation-type": type },
    body,
  };
  const options = { signingDate, unsignableHeaders: new Set(["x-amz-content-sha256"]) };
  return (await signer.sign(request, options)).headers.authorization;
}

class Sha256 {
  readonly #hash: Hash | Hmac;
  constructor(secret?: string | Uint8Array) {
    this.#hash = secret ? createHmac("sha256", secret) : createHash("sha256");
  }
  update(data: string | Uint8Array): void {
    this.#hash.update(data);
  }
  async digest(): Promise<Uint8Array> {
    return this.#hash.digest();
  }
}
