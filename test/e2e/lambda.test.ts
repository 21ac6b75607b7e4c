import { readFileSync } from "node:fs";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as connectTcp } from "@nats-io/transport-node";
import type { APIGatewayProxyResult, LambdaFunctionURLEvent } from "aws-lambda";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { app } from "../../functions/app.ts";
import type { ConsumerReport, InvocationReport } from "../../src/consume/report.ts";
import { disconnect } from "../../src/nats/connection.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { bundleFunction } from "../support/bundle.ts";
import { monitoring } from "../support/monitoring.ts";
import { packageOfOsls } from "../support/osls.ts";
import { silent, startPeer, startProxy, upgradesOnly } from "../support/peers.ts";
import { programOf } from "../support/servers.ts";
import { type System, startSystem } from "../support/system.ts";
import { startInLambda } from "./hosts.ts";
import { scheduledEvent, urlEventOf } from "./lambda-events.ts";
import { type FunctionProperties, type LambdaPackage, packageFunctions, type Resource } from "./lambda-package.ts";
import { type Invocation, type LambdaFunction, startFunction } from "./lambda-runtime.ts";
import { sample } from "./sample.ts";
import { app as jobs } from "./workers/app.ts";

const password = "the-password-of-nats";
const publishToken = "the-token-for-publishing";
const schedulesToken = "the-token-for-schedules";
/** The functions log in with a password; a client that gives none, such as this test's own, is in the same account. */
const config = `
  accounts {
    SORTIE { jetstream: enabled, users: [{ user: sortie, password: "${password}" }, { user: test, password: test }] }
    SYS { users: [{ user: admin, password: "${password}" }] }
  }
  system_account: SYS
  no_auth_user: test
`;
const patience = { timeout: 60_000 }; // where they go side by side
const order = { orderId: "1", card: "tok_visa", cents: 4200 };

let deployed: LambdaPackage;

beforeAll(async () => {
  deployed = await packageFunctions({ NATS_URL: "wss://nats.test:443", SORTIE_PUBLISH_TOKEN: publishToken });
});

afterAll(async () => {
  await deployed?.[Symbol.asyncDispose]();
});

describe("the template", () => {
  test("schedules pull and release, on time and for ever, as a role that may start these alone", () => {
    const schedules = ofType("AWS::Scheduler::Schedule").map(
      ({ ScheduleExpression, FlexibleTimeWindow, State, Target }) => {
        const { Arn, RoleArn, RetryPolicy } = Target as Record<string, unknown>;
        expect(RetryPolicy).toEqual({ MaximumRetryAttempts: 0, MaximumEventAgeInSeconds: 60 });
        return [targetOf(Arn), { State, ScheduleExpression, FlexibleTimeWindow, role: targetOf(RoleArn) }];
      },
    );
    const always = { State: undefined, FlexibleTimeWindow: { Mode: "OFF" }, role: "ScheduleRole" };
    expect(Object.fromEntries(schedules)).toEqual({
      PullLambdaFunction: { ...always, ScheduleExpression: "rate(1 minute)" },
      ReleaseLambdaFunction: { ...always, ScheduleExpression: "rate(1 minute)" },
    });
    expect(roleOf("ScheduleRole")).toEqual({
      for: ["scheduler.amazonaws.com"],
      may: [["lambda:InvokeFunction", ["PullLambdaFunction", "ReleaseLambdaFunction"]]],
    });
  });

  test.each(["Http", "Pull", "Release"])("lets %s write its own log, and nothing else", (name) => {
    const { Role } = deployed.resources[`${name}LambdaFunction`]?.Properties ?? {};
    expect(targetOf(Role)).toBe(`${name}Role`);
    expect(roleOf(`${name}Role`)).toEqual({
      for: ["lambda.amazonaws.com"],
      may: [["logs:CreateLogStream logs:PutLogEvents", [`${name}LogGroup`]]],
    });
    expect(deployed.resources[`${name}LogGroup`]?.Properties).toMatchObject({ RetentionInDays: 30 });
    expect(ofType("AWS::IAM::Role").length).toBe(4); // one each, and the schedules'
  });

  test("raises an alarm where a function is not started any more, or fails time and again", () => {
    const alarms = ofType("AWS::CloudWatch::Alarm").map((properties) => {
      const { Dimensions, MetricName, ComparisonOperator, TreatMissingData, AlarmActions, ...times } = properties;
      const [{ Name, Value } = {}] = Dimensions as { Name?: string; Value?: { Ref: string } }[];
      expect([Name, AlarmActions]).toEqual(["FunctionName", [{ Ref: "Alarms" }]]);
      expect(times).toMatchObject({
        Namespace: "AWS/Lambda",
        Statistic: "Sum",
        Period: 60,
        EvaluationPeriods: 5,
        Threshold: 1,
      });
      return `${Value?.Ref}: ${MetricName} ${ComparisonOperator}, ${TreatMissingData}`;
    });
    const isDead = "Invocations LessThanThreshold, breaching";
    const fails = "Errors GreaterThanOrEqualToThreshold, notBreaching";
    expect(alarms.toSorted()).toEqual([
      `HttpLambdaFunction: ${fails}`,
      `HttpLambdaFunction: ${fails.replace("Errors", "Url5xxCount")}`,
      `PullLambdaFunction: ${fails}`,
      `PullLambdaFunction: ${isDead}`,
      `ReleaseLambdaFunction: ${fails}`,
      `ReleaseLambdaFunction: ${isDead}`,
    ]);
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

  test.each(["http", "pull", "release"])("%s runs on Node 24 with the settings that it needs", (name) => {
    const login = { NATS_URL: "wss://nats.test:443", NATS_CREDS: "", NATS_TOKEN: "", NATS_NKEY: "" };
    const closed = {
      SORTIE_SCHEDULES_TOKEN: "",
      SORTIE_RUN_TOKEN: "",
      SORTIE_ADMIN_TOKEN: "",
      SORTIE_WEBHOOK_SECRET: "",
    };
    expect(deployed.function(name)).toMatchObject({ Runtime: "nodejs24.x", Architectures: ["arm64"], MemorySize: 256 });
    const { Variables } = deployed.function(name).Environment;
    expect(Variables).toEqual(name === "http" ? { ...login, SORTIE_PUBLISH_TOKEN: publishToken, ...closed } : login);
  });

  test("is the same for AWS SAM, as the docs have it", () => {
    const sam = samTemplate();
    const { Globals, Resources } = sam;
    const variablesOf = ({ Environment }: SamFunction) =>
      Object.keys({ ...Globals.Function.Environment?.Variables, ...Environment?.Variables }).toSorted();
    for (const name of ["Http", "Pull", "Release"]) {
      const own = deployed.function(name.toLowerCase());
      const ours = Resources[name]?.Properties as SamFunction;
      const { CodeUri, Environment, ...common } = Globals.Function;
      expect(`${CodeUri}/${ours.Handler}`).toBe(`../../${own.Handler}`);
      const { Timeout, ReservedConcurrentExecutions } = ours;
      expect(own).toMatchObject(JSON.parse(JSON.stringify({ Timeout, ReservedConcurrentExecutions, ...common })));
      expect(variablesOf(ours)).toEqual(Object.keys(own.Environment.Variables).toSorted());
      const once = { MaximumRetryAttempts: 0, MaximumEventAgeInSeconds: 60 };
      const tick = { Type: "ScheduleV2", Properties: { ScheduleExpression: "rate(1 minute)", RetryPolicy: once } };
      const scheduled = { EventInvokeConfig: once, Events: { Tick: tick } };
      expect(ours).toMatchObject(name === "Http" ? { FunctionUrlConfig: { AuthType: "NONE" } } : scheduled);
    }
    const alarms = Object.entries(Resources).filter(([, { Type }]) => Type === "AWS::CloudWatch::Alarm");
    const renamed = JSON.parse(JSON.stringify(alarms).replaceAll(/(Http|Pull|Release)"\}/g, '$1LambdaFunction"}'));
    expect(Object.fromEntries(renamed)).toEqual(
      Object.fromEntries(
        Object.entries(deployed.resources).filter(([, { Type }]) => Type === "AWS::CloudWatch::Alarm"),
      ),
    );
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

  test("takes what API Gateway and load balancers hand it, as its caller meant it", async () => {
    await using system = await startSystem(app, { config });
    await using http = await start("http", system.server.url, { SORTIE_SCHEDULES_TOKEN: schedulesToken });
    const publish = { path: "/publish/orders.placed", authorization: `Bearer ${publishToken}` };
    for (const [n, eventOf] of [restEvent, httpApiEvent, balancerEvent, multiValueBalancerEvent].entries()) {
      const payload = JSON.stringify({ ...order, orderId: `größe ${n}` });
      for (const body of [payload, Buffer.from(payload)]) {
        const { status, body: stored } = answerOf(await http.invoke(eventOf({ ...publish, method: "POST", body })));
        expect({ status, stored }).toMatchObject({ status: 202, stored: { stream: "ORDERS" } });
      }
      const binary = await http.invoke(eventOf({ ...publish, method: "POST", body: Buffer.of(0xff, 0xfe, 0) }));
      expect(answerOf(binary)).toMatchObject({ status: 422, type: "application/problem+json" });
      const later = eventOf({ ...publish, method: "POST", body: payload, query: { delay: "1h" } });
      expect(answerOf(await http.invoke(later))).toMatchObject({ status: 202, body: { schedule: {} } });
      const path = `/schedules/${encodeURIComponent("a/b ü?")}`;
      const missing = eventOf({ method: "GET", path, authorization: `Bearer ${schedulesToken}` });
      expect(answerOf(await http.invoke(missing))).toMatchObject({
        status: 404,
        body: { detail: expect.stringContaining('"a/b ü?"') },
      });
    }
    const decoded = restEvent({ method: "GET", path: "/schedules/100% ü?", authorization: `Bearer ${schedulesToken}` });
    expect(answerOf(await http.invoke(decoded)).body).toMatchObject({ detail: expect.stringContaining('"100% ü?"') });
    const { messages, num_subjects } = (await system.jsm.streams.info("ORDERS")).state;
    expect({ messages, num_subjects }).toMatchObject({ messages: 12, num_subjects: 5 }); // four are schedules
    expect(await functionConnections(system)).toBe(1);
  });

  test("fails for an event that is no request, and says what it is for", async () => {
    await using http = await start("http", "ws://127.0.0.1:1");
    const { error } = await http.invoke(scheduledEvent);
    expect(error?.errorMessage).toMatch(/expected an HTTP request.*got an event of aws.scheduler.*`pull`/s);
    expect((await http.invoke({ Records: [] })).error?.errorMessage).toContain("got an event with Records");
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
    expect(await billingOn(system)).toEqual({ delivered: 3, acked: 1, unsettled: 1, waiting: 0, pulls: 0 });
    expect(await functionConnections(system)).toBe(1); // it is frozen meanwhile

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
    expect(await billingOn(system)).toMatchObject({ unsettled: 0, waiting: 0, pulls: 0 });
    expect(await functionConnections(system)).toBe(1);
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
      errorType: "ConnectionFailedError",
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
      errorType: "ConnectionFailedError",
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
    expect(await functionConnections(system)).toBe(2); // one each
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

describe.concurrent("an instance that was frozen", patience, () => {
  test("for longer than the server waits for its pings loses no message, and no time", async ({ expect }) => {
    await using system = await startSystem(app, { config: `${config}\nping_interval: "1s"\nping_max: 2` });
    await using http = await start("http", system.server.url);
    await using pull = await start("pull", system.server.url);
    expect((await pull.invoke(scheduledEvent)).error).toBeUndefined();
    expect(answerOf(await http.invoke(urlEvent("orders.placed", order))).status).toBe(202);
    await expect.poll(() => functionConnections(system)).toBe(0); // given up by the server

    expect(answerOf(await http.invoke(urlEvent("orders.placed", { ...order, orderId: "2" }))).status).toBe(202);
    const handled = await pull.invoke(scheduledEvent);
    expect(reportOf(handled, "billing")).toMatchObject({ pulled: 2, acked: 2 });
    expect(handled.log).not.toContain('"attempt":2');
    expect(await billingOn(system)).toEqual({ delivered: 2, acked: 2, unsettled: 0, waiting: 0, pulls: 0 });
  });

  test("while its network forgot it replaces its connection, and loses no message", async ({ expect }) => {
    await using system = await startSystem(app, { config });
    await using proxy = await startProxy(system.server.url);
    await using http = await start("http", proxy.url);
    await using pull = await start("pull", proxy.url);
    expect((await pull.invoke(scheduledEvent)).error).toBeUndefined();
    expect(answerOf(await http.invoke(urlEvent("orders.placed", order))).status).toBe(202);
    proxy.forget();
    await sleep(1_050); // no longer used a moment ago

    expect(answerOf(await http.invoke(urlEvent("orders.placed", { ...order, orderId: "2" }))).status).toBe(202);
    const handled = await pull.invoke(scheduledEvent);
    expect(reportOf(handled, "billing")).toMatchObject({ pulled: 2, acked: 2 });
    expect(handled.log).not.toContain('"attempt":2');
    expect(await billingOn(system)).toEqual({ delivered: 2, acked: 2, unsettled: 0, waiting: 0, pulls: 0 });
  });

  test("closes its connection when it is told to go", async ({ expect }) => {
    const monitor = await monitoring();
    await using system = await startSystem(jobs, monitor);
    await using folder = await mkdtempDisposable(join(tmpdir(), "sortie-function-"));
    await bundleFunction("kept.ts", folder.path);
    const settings = { NATS_URL: system.server.url, SORTIE_PUBLISH_TOKEN: publishToken };
    await using http = await startFunction(
      folder.path,
      { ...deployed.function("http"), Handler: "kept.http" },
      settings,
    );
    expect(answerOf(await http.invoke(urlEvent("jobs.do", { n: 1 }))).status).toBe(202);
    expect((await monitor.connections()).length).toBe(1);
    const { pid = 0 } = http;
    process.kill(pid, "SIGTERM");
    process.kill(pid, "SIGCONT");
    await expect.poll(() => monitor.connections()).toEqual([]);
    expect(http.pid).toBe(pid); // it is still there: this function listens as well
  });
});

test.concurrent.each(["newest", "2.10"] as const)(
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
  patience.timeout,
);

sample("Lambda", (settings) => startInLambda(deployed, settings));

describe("with three seconds left and a peer that", () => {
  test.each([
    ["accepts a connection and says nothing", silent],
    ["becomes a WebSocket and says nothing", upgradesOnly],
  ])("%s, every function ends in time and names the host", async (_peer, behave) => {
    await using peer = await startPeer(behave);
    await using http = await start("http", peer.url, { seconds: 3 });
    await using pull = await start("pull", peer.url, { seconds: 3 });
    await using release = await start("release", peer.url, { seconds: 3 });

    const event = urlEvent("orders.placed", order);
    const ended = await Promise.all([http.invoke(event), pull.invoke(scheduledEvent), release.invoke(scheduledEvent)]);
    const [answered, ...failed] = ended;
    for (const { error } of failed) {
      expect(error).toMatchObject({
        errorType: "ConnectionFailedError",
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

interface SamFunction extends Partial<Omit<FunctionProperties, "Environment">> {
  CodeUri?: string;
  Environment?: { Variables: Record<string, unknown> };
}

/** The template of the docs, read by the YAML parser that comes with osls. */
function samTemplate() {
  const { load } = packageOfOsls("js-yaml") as { load(text: string): unknown };
  const file = new URL("../../docs/deploy/aws-lambda.sam.yaml", import.meta.url);
  return load(readFileSync(file, "utf8")) as {
    Globals: { Function: SamFunction };
    Resources: Record<string, Resource>;
  };
}

/** Starts a function of the deployment with its own settings, but for where the server is, and `others`. */
function start(
  name: string,
  url: string,
  { seconds, ...others }: { seconds?: number; SORTIE_SCHEDULES_TOKEN?: string } = {},
): Promise<LambdaFunction> {
  const properties = deployed.function(name);
  const NATS_URL = url.includes("@") ? url : withLogin(url);
  return startFunction(
    deployed.taskRoot,
    { ...properties, Timeout: seconds ?? properties.Timeout },
    { NATS_URL, ...others },
  );
}

async function billingOn({ jsm }: System) {
  const { delivered, ack_floor, num_ack_pending, num_pending, num_waiting } = await jsm.consumers.info(
    "ORDERS",
    "billing",
  );
  return {
    delivered: delivered.stream_seq,
    acked: ack_floor.stream_seq,
    unsettled: num_ack_pending,
    waiting: num_pending,
    pulls: num_waiting,
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

/** A POST as a function URL hands it over. */
function urlEvent(subject: string, payload: unknown, headers: Record<string, string> = {}): LambdaFunctionURLEvent {
  return urlEventOf({
    method: "POST",
    path: `/publish/${subject}`,
    headers: { "content-type": "application/json", authorization: `Bearer ${publishToken}`, ...headers },
    body: Buffer.from(JSON.stringify(payload)),
  });
}

interface Asked {
  method: string;
  /** As its caller wrote it. */
  path: string;
  authorization: string;
  /** Bytes are handed over in base64. */
  body?: string | Buffer;
  query?: Record<string, string>;
}

function handed({ authorization, body }: Asked) {
  const isBase64Encoded = typeof body === "object";
  const headers = { "Content-Type": "application/json", Authorization: authorization, Host: "api.example.com" };
  return { headers, body: isBase64Encoded ? body.toString("base64") : (body ?? null), isBase64Encoded };
}

function listed(values: Record<string, string>): Record<string, string[]> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, [value]]));
}

/** As a REST API of API Gateway hands a request over: payload format 1.0. */
function restEvent(asked: Asked): object {
  const { headers, ...more } = handed(asked);
  return {
    ...more,
    resource: "/{proxy+}",
    path: asked.path,
    httpMethod: asked.method,
    headers,
    multiValueHeaders: listed(headers),
    queryStringParameters: asked.query ?? null,
    multiValueQueryStringParameters: asked.query ? listed(asked.query) : null,
    requestContext: {
      stage: "prod",
      path: `/prod${asked.path}`,
      domainName: "api.example.com",
      httpMethod: asked.method,
    },
  };
}

/** As an HTTP API hands it over whose stage has a name: payload format 2.0. */
function httpApiEvent(asked: Asked): object {
  const { headers, ...more } = handed(asked);
  const lowered = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]);
  const http = {
    method: asked.method,
    path: `/prod${asked.path}`,
    protocol: "HTTP/1.1",
    sourceIp: "192.0.2.1",
    userAgent: "",
  };
  return {
    ...more,
    version: "2.0",
    rawPath: `/prod${asked.path}`,
    rawQueryString: new URLSearchParams(asked.query).toString(),
    headers: Object.fromEntries(lowered),
    requestContext: { stage: "prod", domainName: "api.example.com", http },
  };
}

function balancerEvent(asked: Asked): object {
  const { headers, ...more } = handed(asked);
  const lowered = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]);
  return {
    ...more,
    path: asked.path,
    httpMethod: asked.method,
    headers: Object.fromEntries(lowered),
    queryStringParameters: asked.query ?? {},
    requestContext: { elb: { targetGroupArn: "arn:aws:elasticloadbalancing:eu-central-1:1:targetgroup/http/1" } },
  };
}

/** Of a target group that is set to several values for a header. */
function multiValueBalancerEvent(asked: Asked): object {
  const { headers, queryStringParameters, ...more } = balancerEvent(asked) as Record<string, Record<string, string>>;
  const lists = {
    multiValueHeaders: listed(headers ?? {}),
    multiValueQueryStringParameters: listed(queryStringParameters ?? {}),
  };
  return { ...more, ...lists };
}

/** What the function URL would send to its caller. */
function answerOf({ error, response }: Invocation) {
  expect(error).toBeUndefined();
  const { statusCode, body = "", isBase64Encoded, ...answer } = response as APIGatewayProxyResult;
  const text = isBase64Encoded ? Buffer.from(body, "base64").toString() : body;
  return {
    status: statusCode,
    type: answer.multiValueHeaders?.["content-type"]?.[0] ?? answer.headers?.["content-type"],
    body: JSON.parse(text) as unknown,
  };
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
  for (const secret of [password, publishToken, schedulesToken])
    expect(JSON.stringify(invocations)).not.toContain(secret);
}

function ofType(type: string): Resource["Properties"][] {
  return Object.values(deployed.resources)
    .filter(({ Type }) => Type === type)
    .map(({ Properties }) => Properties);
}

function propertiesOf<Properties>(id: string): Properties {
  const resource = deployed.resources[id];
  if (!resource) throw new Error(`The template has no ${id}`);
  return resource.Properties as Properties;
}

/** Who may take a role, and what it may do to which resources of the template. */
function roleOf(name: string) {
  const { AssumeRolePolicyDocument, Policies, ...others } = propertiesOf<{
    AssumeRolePolicyDocument: { Statement: { Principal: { Service: string }; Action: string }[] };
    Policies: { PolicyDocument: { Statement: { Effect: string; Action: string | string[]; Resource: unknown }[] } }[];
  }>(name);
  expect(others).toEqual({});
  return {
    for: AssumeRolePolicyDocument.Statement.map(({ Principal }) => Principal.Service),
    may: Policies.flatMap(({ PolicyDocument }) => PolicyDocument.Statement).map(({ Effect, Action, Resource }) => {
      expect(Effect).toBe("Allow");
      return [[Action].flat().join(" "), [Resource].flat().map(targetOf)];
    }),
  };
}

function targetOf(arn: unknown): string | undefined {
  return (arn as { "Fn::GetAtt": string[] })["Fn::GetAtt"][0];
}
