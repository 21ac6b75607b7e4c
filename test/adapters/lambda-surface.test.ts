import { expect, it, vi } from "vitest";
import { serve } from "../../src/adapters/aws-lambda.ts";
import { httpEvent } from "../../src/adapters/http-event.ts";
import { app, secrets, tokens } from "../http/surface.ts";
import { startSystem } from "../support/system.ts";

type Handler = ReturnType<typeof serve>["http"];

it("a Lambda's function URL has a clock by URL, and knows callers by where they come from", async () => {
  await using system = await startSystem(app);
  vi.stubEnv("NATS_URL", system.server.url);
  vi.stubEnv("SORTIE_RUN_TOKEN", tokens.run);
  vi.spyOn(console, "log").mockReturnValue();
  const { http } = serve(app, { rateLimit: { requests: 2, per: "1h" } });
  const ask = async (path: string, token: string, sourceIp = "192.0.2.1") => {
    const event = {
      version: "2.0",
      rawPath: path,
      rawQueryString: "",
      headers: { host: "x.test", authorization: `Bearer ${token}`, "x-forwarded-for": `${Math.random()}` },
      requestContext: { http: { method: "POST", path, sourceIp }, domainName: "x.test" },
      isBase64Encoded: false,
    };
    const context = { getRemainingTimeInMillis: () => 5_000 };
    const answer = await http(event as unknown as Parameters<Handler>[0], context as Parameters<Handler>[1]);
    return { status: answer.statusCode, answer: JSON.parse(answer.body ?? "") as unknown };
  };
  const order = { orderId: "by url" };
  await system.publish("orders.placed", order);
  expect(await ask("/run/billing", secrets.run)).toMatchObject({ status: 200, answer: { consumers: [{ acked: 1 }] } });
  expect(await ask("/release", secrets.run)).toMatchObject({
    status: 200,
    answer: { streams: [{ stream: "ORDERS" }] },
  });
  expect(await ask("/release", secrets.run)).toMatchObject({ status: 429 });
  for (const status of [401, 401, 429]) expect(await ask("/release", "guess")).toMatchObject({ status });
  expect(await ask("/release", "guess", "192.0.2.2")).toMatchObject({ status: 401 }); // whatever it forwards for
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

it.each([
  ["/prod/publish/orders.placed", "prod", "/publish/orders.placed"],
  ["/prod/health", "prod", "/health"],
  ["/publish/publish/orders.placed", "publish", "/publish/orders.placed"],
  ["/publish/orders.placed", "publish", "/publish/orders.placed"], // behind a domain of one's own
  ["/schedules/1/fire", "schedules", "/schedules/1/fire"],
  ["/health", "health", "/health"],
  ["/publish/orders.placed", "$default", "/publish/orders.placed"],
])("the path %s of an HTTP API's stage %s is %s", (rawPath, stage, path) => {
  const event = { version: "2.0", rawPath, requestContext: { stage, http: { method: "GET", path: rawPath } } };
  expect(httpEvent(event as unknown as Parameters<typeof httpEvent>[0])).toMatchObject({ rawPath: path });
});
