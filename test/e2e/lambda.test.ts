import { connect as connectTcp } from "@nats-io/transport-node";
import type { LambdaFunctionURLEvent, LambdaFunctionURLResult, ScheduledEvent } from "aws-lambda";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { app } from "../../functions/app.ts";
import type { ConsumerReport, InvocationReport } from "../../src/consume/report.ts";
import { disconnect } from "../../src/nats/connection.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { silent, startPeer, upgradesOnly } from "../support/peers.ts";
import { programOf } from "../support/servers.ts";
import { type System, startSystem } from "../support/system.ts";
import { type LambdaPackage, packageFunctions, type Resource } from "./lambda-package.ts";
import { type Invocation, type LambdaFunction, startFunction } from "./lambda-runtime.ts";

const password = "the-password-of-nats";
const publishToken = "the-token-for-publishing";
/** The functions log in with a password; a client that gives none, such as this test's own, is in the same account. */
const config = `
  accounts {
    SORTIE { jetstream: enabled, users: [{ user: sortie, password: "${password}" }, { user: test, password: test }] }
    SYS { users: [{ user: admin, password: "${password}" }] }
  }
  system_account: SYS
  no_auth_user: test
`;
const order = { orderId: "1", card: "tok_visa", cents: 4200 };

let deployed: LambdaPackage;

beforeAll(async () => {
  deployed = await packageFunctions({ NATS_URL: "wss://nats.test:443", SORTIE_PUBLISH_TOKEN: publishToken });
});

afterAll(async () => {
  await deployed?.[Symbol.asyncDispose]();
});

describe("the template", () => {
  test("schedules pull and release, on time and for ever", () => {
    const schedules = ofType("AWS::Scheduler::Schedule").map(
      ({ State, ScheduleExpression, FlexibleTimeWindow, Target }) => {
        return [targetOf((Target as { Arn: unknown }).Arn), { State, ScheduleExpression, FlexibleTimeWindow }];
      },
    );
    const always = { State: "ENABLED", FlexibleTimeWindow: { Mode: "OFF" } };
    expect(Object.fromEntries(schedules)).toEqual({
      PullLambdaFunction: { ...always, ScheduleExpression: "rate(1 minute)" },
      ReleaseLambdaFunction: { ...always, ScheduleExpression: "rate(1 minute)" },
    });
  });

  test("gives http, and nothing else, a URL that anyone can call", () => {
    const urls = ofType("AWS::Lambda::Url").map(({ AuthType, TargetFunctionArn }) => [
      targetOf(TargetFunctionArn),
      AuthType,
    ]);
    expect(urls).toEqual([["HttpLambdaFunction", "NONE"]]);
    const permissions = ofType("AWS::Lambda::Permission").map(({ Action, FunctionName }) => [
      Action,
      targetOf(FunctionName),
    ]);
    expect(Object.fromEntries(permissions)).toEqual({
      "lambda:InvokeFunctionUrl": "HttpLambdaFunction",
      "lambda:InvokeFunction": "HttpLambdaFunction",
    });
  });

  test("runs one pull and one release at a time, and leaves retrying to their schedules", () => {
    expect(deployed.function("pull")).toMatchObject({ Timeout: 50, ReservedConcurrentExecutions: 1 });
    expect(deployed.function("release")).toMatchObject({ Timeout: 15, ReservedConcurrentExecutions: 1 });
    expect(deployed.function("http")).not.toHaveProperty("ReservedConcurrentExecutions");
    const invoked = ofType("AWS::Lambda::EventInvokeConfig").map(
      ({ FunctionName, MaximumRetryAttempts, MaximumEventAgeInSeconds }) => {
        return [(FunctionName as { Ref: string }).Ref, [MaximumRetryAttempts, MaximumEventAgeInSeconds]];
      },
    );
    expect(Object.fromEntries(invoked)).toEqual({ PullLambdaFunction: [0, 60], ReleaseLambdaFunction: [0, 60] });
  });

  test.each(["http", "pull", "release"])("%s runs on Node 24 with the settings of the deployment", (name) => {
    expect(deployed.function(name)).toMatchObject({
      Runtime: "nodejs24.x",
      Architectures: ["arm64"],
      MemorySize: 256,
      Environment: {
        Variables: {
          NATS_URL: "wss://nats.test:443",
          NATS_CREDS: "",
          NATS_TOKEN: "",
          SORTIE_PUBLISH_TOKEN: publishToken,
        },
      },
    });
  });

  test("the archive has the bundle and nothing else", () => {
    expect(deployed.files).toEqual(["build/lambda/lambda.cjs"]);
  });
});

describe("http", () => {
  test("publishes what the function URL hands it, and again after a freeze", async () => {
    await using system = await startSystem(app, { config });
    await using http = await start("http", system.server.url);

    const event = urlEvent("orders.placed", order, { "idempotency-key": "order-1" });
    const first = await http.invoke(event);
    expect(answerOf(first)).toMatchObject({ status: 202, body: { stream: "ORDERS", sequence: 1, duplicate: false } });
    const { pid } = http;
    expect(answerOf(await http.invoke(event))).toMatchObject({ status: 202, body: { sequence: 1, duplicate: true } });
    const other = await http.invoke(urlEvent("orders.placed", { ...order, orderId: "2" }));
    expect(answerOf(other)).toMatchObject({ status: 202, body: { sequence: 2, duplicate: false } });
    expect(http.pid).toBe(pid);

    const stored = await system.jsm.streams.getMessage("ORDERS", { seq: 1 });
    expect(stored?.subject).toBe("orders.placed");
    expect(stored?.json()).toMatchObject(order);
    expect(stored?.header.get("Nats-Msg-Id")).toBe("order-1");
    expect((await system.jsm.streams.info("ORDERS")).state.messages).toBe(2);
  });

  test("refuses a wrong token and a payload that does not fit, and stores neither", async () => {
    await using system = await startSystem(app, { config });
    await using http = await start("http", system.server.url);

    const stranger = await http.invoke(urlEvent("orders.placed", order, { authorization: "Bearer a-guess" }));
    expect(answerOf(stranger)).toMatchObject({
      status: 401,
      type: "application/problem+json",
      body: { type: "urn:sortie:problem:unauthorized" },
    });
    const malformed = await http.invoke(urlEvent("orders.placed", { ...order, cents: -1 }));
    expect(answerOf(malformed)).toMatchObject({
      status: 422,
      type: "application/problem+json",
      body: { type: "urn:sortie:problem:invalid-payload", errors: [{ path: "cents" }] },
    });
    expectNoSecret(stranger, malformed);

    expect((await system.jsm.streams.info("ORDERS")).state.messages).toBe(0);
  });
});

describe("pull", () => {
  test("handles, retries and dead-letters as the server bears out, and again after a freeze", async () => {
    await using system = await startSystem(app, { config });
    await using pull = await start("pull", system.server.url);
    const cards = ["tok_visa", "tok_busy", "tok_declined"];
    for (const card of cards) await system.publish("orders.placed", { ...order, card });

    const first = await pull.invoke(scheduledEvent);
    expect(first.error).toBeUndefined();
    const settled = { acked: 1, retried: 1, deadLettered: 1, returned: 0, unconfirmed: 0 };
    expect(reportOf(first, "billing")).toMatchObject({ stream: "ORDERS", pulled: 3, ...settled, ended: "drained" });
    expect(reportOf(first, "reminders")).toMatchObject({ pulled: 0, ended: "drained" });
    expect(reportOf(first, "resizer")).toMatchObject({ stream: "IMAGES", pulled: 0, ended: "drained" });
    expect(await billingOn(system)).toEqual({ delivered: 3, acked: 1, unsettled: 1, waiting: 0 });
    await vi.waitFor(async () => expect(await functionConnections(system)).toBe(0)); // it is frozen meanwhile

    const dead = await system.jsm.streams.getMessage("DEAD", { last_by_subj: "dead.orders.billing" });
    expect(dead?.json()).toEqual({ ...order, card: "tok_declined" });
    expect(dead?.header.get("Sortie-Reason")).toBe("non-retriable");
    expect(dead?.header.get("Sortie-Error")).toContain("card declined");
    expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(1);

    const { pid } = pull;
    await system.publish("orders.placed", { ...order, orderId: "2" });
    expect(reportOf(await pull.invoke(scheduledEvent), "billing")).toMatchObject({ pulled: 1, acked: 1 });

    const retry = await vi.waitFor(
      async () => {
        const again = await pull.invoke(scheduledEvent);
        expect(reportOf(again, "billing")).toMatchObject({ pulled: 1, acked: 1 });
        return again;
      },
      { timeout: 5_000, interval: 100 },
    );
    expect(retry.log).toContain('"attempt":2');
    expect(await billingOn(system)).toMatchObject({ unsettled: 0, waiting: 0 });
    await vi.waitFor(async () => expect(await functionConnections(system)).toBe(0)); // it is frozen meanwhile
    expect(pull.pid).toBe(pid);
  });

  test("fails while the server is down, and works once it is back", async () => {
    await using system = await startSystem(app, { config });
    await using pull = await start("pull", system.server.url);
    expect((await pull.invoke(scheduledEvent)).error).toBeUndefined();
    const { pid } = pull;

    await system.publish("orders.placed", order);
    await system.server.kill();
    const down = await pull.invoke(scheduledEvent);
    expect(down.error).toMatchObject({
      errorType: "SortieError",
      errorMessage: expect.stringContaining(hostOf(system.server.url)),
    });
    expect(down.ms).toBeLessThan(5_000); // of 50 s
    expectNoSecret(down);

    await system.server.start();
    expect(reportOf(await pull.invoke(scheduledEvent), "billing")).toMatchObject({ pulled: 1, acked: 1 });
    expect(pull.pid).toBe(pid);
  });

  test("fails where a consumer is missing, saying what to run, after it has served the others", async () => {
    await using system = await startSystem(app, { config });
    await using pull = await start("pull", system.server.url);
    await system.jsm.consumers.delete("ORDERS", "reminders");
    await system.publish("orders.placed", order);

    const { error } = await pull.invoke(scheduledEvent);
    expect(error?.errorMessage).toMatch(/"reminders".*does not exist.*npx sortie apply/s);
    expect(await billingOn(system)).toMatchObject({ acked: 1, unsettled: 0, waiting: 0 });
  });

  test("fails with a password that the server refuses, without telling it", async () => {
    await using system = await startSystem(app, { config });
    await using pull = await start("pull", system.server.url.replace("://", `://sortie:${password}-wrong@`));
    const refused = await pull.invoke(scheduledEvent);
    expect(refused.error).toMatchObject({
      errorType: "SortieError",
      errorMessage: expect.stringContaining(hostOf(system.server.url)),
    });
    expectNoSecret(refused);
  });
});

describe("release", () => {
  test("counts the reminders that the server holds, until the server has released them", async () => {
    await using system = await startSystem(app, { config });
    await using pull = await start("pull", system.server.url);
    await using release = await start("release", system.server.url);

    expect(await released(release)).toEqual({ ORDERS: 0, IMAGES: 0 });
    await system.publish("orders.placed", { ...order, remindAfterSeconds: 2 });
    await system.publish("orders.placed", { ...order, orderId: "2" });
    await pull.invoke(scheduledEvent);
    expect(await released(release)).toEqual({ ORDERS: 2, IMAGES: 0 });
    expect(await scheduledIn(system, "ORDERS")).toBe(2);

    expect(await firstOn(system, "orders.reminder")).toEqual({ orderId: "1" });
    expect(await released(release)).toEqual({ ORDERS: 1, IMAGES: 0 });
    expect(await scheduledIn(system, "ORDERS")).toBe(1);
    expect(reportOf(await pull.invoke(scheduledEvent), "reminders")).toMatchObject({ pulled: 1, acked: 1 });
    await vi.waitFor(async () => expect(await functionConnections(system)).toBe(0)); // it is frozen meanwhile
  });
});

describe("release, where the server releases nothing by itself,", () => {
  test("releases what is due, and leaves the rest to the next one", async () => {
    await using system = await startSystem(app, { config, binary: programOf("2.10") });
    await using pull = await start("pull", system.server.url);
    await using release = await start("release", system.server.url);
    const releasedNow = async () => {
      const { error, response } = await release.invoke(scheduledEvent);
      expect(error).toBeUndefined();
      const { streams } = response as { streams: { stream: string; released: number }[] };
      return Object.fromEntries(streams.map(({ stream, released }) => [stream, released]));
    };
    await system.publish("orders.placed", { ...order, remindAfterSeconds: 1 });
    await system.publish("orders.placed", { ...order, orderId: "2" });
    await pull.invoke(scheduledEvent);
    await vi.waitFor(async () => expect(await releasedNow()).toEqual({ ORDERS: 1, IMAGES: 0 }), 5_000);
    expect(await firstOn(system, "orders.reminder")).toEqual({ orderId: "1" });
    expect(await releasedNow()).toEqual({ ORDERS: 0, IMAGES: 0 });
    expect(reportOf(await pull.invoke(scheduledEvent), "reminders")).toMatchObject({ pulled: 1, acked: 1 });
  });
});

test.each(["newest", "2.10"] as const)(
  "release has what comes again come again, on nats-server %s",
  async (version) => {
    await using system = await startSystem(app, { config, binary: programOf(version) });
    await using release = await start("release", system.server.url);
    const connection = await system.connect();
    const made = Date.now();
    const schedules = createSchedules(connection, app.streams);
    await schedules.schedule("orders.reminder", { orderId: "1" }, { every: "1s", id: "again", catchUp: "all" });
    await vi.waitFor(() => expect(Date.now()).toBeGreaterThan(made + 2_100), 4_000);
    expect((await release.invoke(scheduledEvent)).error).toBeUndefined();
    const [first, second] = [await system.jsm.streams.getMessage("ORDERS", { seq: 1 }), await latestOf(system)];
    expect(first?.header.get("Sortie-Schedule")).toBe("again");
    expect(Number(second?.header.get("Sortie-Scheduled-For"))).toBeGreaterThanOrEqual(made + 2_000);
    expect(await schedules.cancel("again")).toBe("cancelled");
    disconnect(connection);
  },
);

describe("with three seconds left and a peer that", () => {
  test.each([
    ["accepts a connection and says nothing", silent],
    ["becomes a WebSocket and says nothing", upgradesOnly],
  ])("%s, every function ends in time and names the host", async (_peer, behave) => {
    await using peer = await startPeer(behave);
    await using http = await start("http", peer.url, 3);
    await using pull = await start("pull", peer.url, 3);
    await using release = await start("release", peer.url, 3);

    const event = urlEvent("orders.placed", order);
    const ended = await Promise.all([http.invoke(event), pull.invoke(scheduledEvent), release.invoke(scheduledEvent)]);
    const [answered, ...failed] = ended;
    for (const { error } of failed) {
      expect(error).toMatchObject({
        errorType: "SortieError",
        errorMessage: expect.stringContaining(hostOf(peer.url)),
      });
    }
    expect(answerOf(answered)).toMatchObject({
      status: 503,
      body: { type: "urn:sortie:problem:connection-failed" },
    });
    for (const { ms } of ended) expect(ms).toBeLessThan(3_000);
    expectNoSecret(...ended);
  });
});

/** Starts a function of the deployment with its own settings, but for where the server is. */
function start(name: string, url: string, timeoutSeconds?: number): Promise<LambdaFunction> {
  const properties = deployed.function(name);
  const NATS_URL = url.includes("@") ? url : withLogin(url);
  return startFunction(
    deployed.taskRoot,
    { ...properties, Timeout: timeoutSeconds ?? properties.Timeout },
    { NATS_URL },
  );
}

async function billingOn({ jsm }: System) {
  const { delivered, ack_floor, num_ack_pending, num_pending } = await jsm.consumers.info("ORDERS", "billing");
  return {
    delivered: delivered.stream_seq,
    acked: ack_floor.stream_seq,
    unsettled: num_ack_pending,
    waiting: num_pending,
  };
}

async function scheduledIn({ jsm }: System, stream: string): Promise<number> {
  const { state } = await jsm.streams.info(stream, { subjects_filter: `sortie.schedule.${stream}.>` });
  return Object.values(state.subjects ?? {}).reduce((sum, messages) => sum + messages, 0);
}

function latestOf({ jsm }: System) {
  return jsm.streams.getMessage("ORDERS", { last_by_subj: "orders.reminder" });
}

/** The payload of the first message of the stream ORDERS on a subject, as soon as there is one. */
async function firstOn({ js }: System, subject: string): Promise<unknown> {
  const consumer = await js.consumers.get("ORDERS", { filter_subjects: subject });
  const message = await consumer.next({ expires: 10_000 });
  return message?.json();
}

/** How many functions are connected, in the server's own list, asked over its system account. */
async function functionConnections({ server }: System): Promise<number> {
  const admin = await connectTcp({ servers: server.tcpUrl, user: "admin", pass: password, reconnect: false });
  try {
    const answer = await admin.request("$SYS.REQ.ACCOUNT.SORTIE.CONNZ");
    const { data } = answer.json<{ data: { connections: { name?: string }[] } }>();
    return data.connections.filter(({ name }) => name === "sortie").length;
  } finally {
    await admin.close();
  }
}

function withLogin(url: string): string {
  return url.replace("://", `://sortie:${password}@`);
}

function hostOf(url: string): string {
  return new URL(url).host;
}

/** A POST as a function URL hands it over: payload format 2.0. */
function urlEvent(subject: string, payload: unknown, headers: Record<string, string> = {}): LambdaFunctionURLEvent {
  const path = `/publish/${subject}`;
  const domainName = "abc.lambda-url.eu-central-1.on.aws";
  return {
    version: "2.0",
    routeKey: "$default",
    rawPath: path,
    rawQueryString: "",
    headers: {
      host: domainName,
      "content-type": "application/json",
      authorization: `Bearer ${publishToken}`,
      ...headers,
    },
    requestContext: {
      accountId: "anonymous",
      apiId: "abc",
      domainName,
      domainPrefix: "abc",
      http: { method: "POST", path, protocol: "HTTP/1.1", sourceIp: "192.0.2.1", userAgent: "test" },
      requestId: "1",
      routeKey: "$default",
      stage: "$default",
      time: "01/Jan/2026:00:00:00 +0000",
      timeEpoch: 1_767_225_600_000,
    },
    body: Buffer.from(JSON.stringify(payload)).toString("base64"),
    isBase64Encoded: true,
  };
}

/** What EventBridge Scheduler sends to a target without an input of its own. */
const scheduledEvent: ScheduledEvent<string> = {
  version: "0",
  id: "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa",
  "detail-type": "Scheduled Event",
  source: "aws.scheduler",
  account: "123456789012",
  time: "2026-01-01T00:00:00Z",
  region: "eu-central-1",
  resources: ["arn:aws:scheduler:eu-central-1:123456789012:schedule/default/pull"],
  detail: "{}",
};

/** What the function URL would send to its caller. */
function answerOf({ error, response }: Invocation) {
  expect(error).toBeUndefined();
  const { statusCode, headers, body = "", isBase64Encoded } = response as Exclude<LambdaFunctionURLResult, string>;
  const text = isBase64Encoded ? Buffer.from(body, "base64").toString() : body;
  return { status: statusCode, type: headers?.["content-type"], body: JSON.parse(text) as unknown };
}

function reportOf({ error, response }: Invocation, consumer: string): ConsumerReport | undefined {
  expect(error).toBeUndefined();
  return (response as InvocationReport).consumers.find((report) => report.consumer === consumer);
}

async function released(release: LambdaFunction): Promise<Record<string, number>> {
  const { error, response } = await release.invoke(scheduledEvent);
  expect(error).toBeUndefined();
  const { streams } = response as { streams: { stream: string; onServer: number }[] };
  return Object.fromEntries(streams.map(({ stream, onServer }) => [stream, onServer]));
}

/** Neither in what the caller gets nor in the log. */
function expectNoSecret(...invocations: Invocation[]): void {
  for (const secret of [password, publishToken]) expect(JSON.stringify(invocations)).not.toContain(secret);
}

function ofType(type: string): Resource["Properties"][] {
  return Object.values(deployed.resources)
    .filter(({ Type }) => Type === type)
    .map(({ Properties }) => Properties);
}

function targetOf(arn: unknown): string | undefined {
  return (arn as { "Fn::GetAtt": string[] })["Fn::GetAtt"][0];
}
