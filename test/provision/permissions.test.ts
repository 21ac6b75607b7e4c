import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";
import type { LambdaContext } from "hono/aws-lambda";
import { type LambdaHandlers, serve } from "sortie/aws-lambda";
import { describe, it, vi } from "vitest";
import * as z from "zod";
import manifest from "../../package.json" with { type: "json" };
import { collect } from "../../src/cli/definitions.ts";
import { show, versionFor } from "../../src/cli/permissions.ts";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { type PermissionsOptions, planPermissions } from "../../src/provision/permissions.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { operated } from "../support/accounts.ts";
import { type Permitted, type PermittedOptions, type Role, startPermitted } from "../support/permitted.ts";
import { rich, richOf, sample, sampleOf } from "../support/permitted-apps.ts";
import { fly, functionsOf, type Samples } from "../support/permitted-flight.ts";
import { programOf, type ServerVersion } from "../support/servers.ts";

vi.spyOn(console, "log").mockReturnValue();
vi.spyOn(console, "error").mockReturnValue();

describe.concurrent("with exactly its permissions", () => {
  const systems: (readonly [string, ServerVersion, Record<string, unknown>, Samples, PermittedOptions?])[] = [
    ["the sample system", "newest", { sample }, sampleOf],
    ["the sample system", "2.10", { sample }, sampleOf, { together: true }],
    ["the sample system", "2.9", { sample }, sampleOf],
    ["an app with all that there is", "newest", { rich }, richOf],
  ];
  it.for(systems)(
    "%s, on %s, does all that it can do and makes use of each",
    async ([, version, exports, samples, options], { expect }) => {
      await using permitted = await startPermitted(collect("app", exports), { version, ...options });
      const wrong = await fly(permitted, samples);
      const result = { wrong, refused: await permitted.refused(), unused: unusedBy(permitted) };
      expect(result).toEqual({ wrong: [], refused: [], unused: [] });
    },
  );

  it("the sample's own handlers charge, retry, remind and give up, in Lambda functions", async ({ expect }) => {
    await using permitted = await startPermitted(collect("app", { sample }));
    await functionsOf(sample, permitted).apply();
    /** One of the functions, with the settings of its own. */
    const call = async <T>(role: "http" | "pull" | "release", run: (handlers: LambdaHandlers) => Promise<T>) => {
      vi.stubEnv("NATS_URL", permitted.urlOf(role));
      vi.stubEnv("SORTIE_PUBLISH_TOKEN", "token");
      return run(serve(sample, { linger: role === "pull" ? "2500ms" : "drain" }));
    };
    const context = { getRemainingTimeInMillis: () => 10_000 } as LambdaContext;
    for (const card of ["tok_visa", "tok_busy", "tok_declined"]) {
      const order = { orderId: card, card, cents: 4200, remindAfterSeconds: 0.1 };
      const event = {
        version: "2.0",
        rawPath: "/publish/orders.placed",
        rawQueryString: "",
        headers: { authorization: "Bearer token", "content-type": "application/json" },
        requestContext: { http: { method: "POST", path: "/publish/orders.placed" }, domainName: "sortie.test" },
        body: JSON.stringify(order),
        isBase64Encoded: false,
      };
      const answer = await call("http", (handlers) => handlers.http(event as never, context));
      expect(answer).toMatchObject({ statusCode: 202 });
    }
    const { consumers } = await call("pull", (handlers) => handlers.pull({}, context));
    const charged = { consumer: "billing", retried: 1, acked: 2, deadLettered: 1 };
    expect(consumers.find(({ consumer }) => consumer === "billing")).toMatchObject(charged);
    expect(consumers.find(({ consumer }) => consumer === "reminders")).toMatchObject({ acked: 2 });
    await call("release", (handlers) => handlers.release({}, context));
    expect(await permitted.refused()).toEqual([]);
  });

  /** But for what it takes more than five seconds to make use of: test/chaos does. */
  function unusedBy(permitted: Permitted): string[] {
    const limited = permitted.definitions.streams.filter(({ retention }) => retention === "limits");
    const rare = limited.map(({ name }) => `release $JS.API.STREAM.MSG.GET.${name}`);
    return permitted.unused().filter((one) => !rare.includes(one));
  }
});

describe.concurrent("users that nsc adds", () => {
  it("do what their functions do, and hear nobody else's answers", async ({ expect }) => {
    const definitions = collect("app", { sample });
    const commands = show(planPermissions(definitions), { nsc: true }).split("\nnsc ");
    const users = commands.map((command) => {
      const values = (flag: string) =>
        [...command.matchAll(new RegExp(`--${flag} '?([^\\s']+)`, "g"))].map(([, value = ""]) => value);
      const [name = ""] = values("name");
      return { name, publish: values("allow-pub"), subscribe: values("allow-sub") };
    });
    const { config, credsOf } = operated(users);
    await using server = await startNatsServer({ config });
    const as = (role: Role) => (ms: number) => connect({ url: server.url, creds: credsOf(`sample-${role}`) }, ms);
    const { apply, ask, pull, release } = functionsOf(sample, { definitions, as });
    expect(await apply()).toContainEqual({ kind: "stream", name: "ORDERS", action: "create", changes: [] });
    const order = { orderId: "1", card: "tok_declined", cents: 4200 };
    expect(await ask("POST", "/publish/orders.placed", order)).toMatchObject({ status: 202 });
    expect(await ask("GET", "/schedules")).toMatchObject({ status: 200 });
    const { consumers } = await pull(0);
    expect(consumers.filter(({ error }) => error)).toEqual([]);
    expect(consumers[0]).toMatchObject({ consumer: "billing", deadLettered: 1 });
    expect((await release(0)).streams.filter(({ error }) => error)).toEqual([]);
    const spy = await as("http")(5_000);
    const told = Promise.withResolvers<Error | null>();
    spy.subscribe("_INBOX.sample-pull.>", { callback: told.resolve });
    expect(await told.promise).toMatchObject({ message: expect.stringMatching(/violation/i) });
    disconnect(spy);
  });
});

describe.concurrent("a login", () => {
  it("does nothing but what its function does", async ({ expect }) => {
    await using permitted = await startPermitted(collect("app", { sample }));
    await functionsOf(sample, permitted).apply();
    await permitted.js.publish("orders.placed", JSON.stringify(sampleOf["orders.placed"]));
    const before = (await permitted.jsm.streams.info("ORDERS")).state;
    const refused = { code: "permission-denied", message: expect.stringMatching(/violation.*sortie permissions/i) };
    const publishes = {
      http: [
        ...["DELETE", "PURGE", "UPDATE", "SNAPSHOT"].map((what) => `$JS.API.STREAM.${what}.ORDERS`),
        ...["$JS.API.STREAM.CREATE.SPY", "$JS.API.STREAM.LIST", "$JS.API.STREAM.PURGE.SORTIE_SCHEDULES"],
        ...["$JS.API.STREAM.MSG.GET.DEAD", "$JS.API.STREAM.MSG.GET.SORTIE_ATTEMPTS", "$JS.API.DIRECT.GET.ORDERS"],
        ...["CREATE.ORDERS", "CREATE.ORDERS.spy", "DURABLE.CREATE.ORDERS.spy", "MSG.NEXT.ORDERS.billing"].map(
          (what) => `$JS.API.CONSUMER.${what}`,
        ),
        ...[
          "$JS.API.CONSUMER.DELETE.ORDERS.billing",
          "$JS.ACK.ORDERS.billing.1.1.1.1.0",
          "$JS.API.META.LEADER.STEPDOWN",
        ],
        ...["dead.orders.billing", "orders.other", "sortie.attempts.ORDERS.billing.1.1", "_INBOX.sample-pull.a.b"],
        ...["$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.billing", "$SYS.REQ.SERVER.PING"],
      ],
      pull: ["$JS.API.STREAM.DELETE.ORDERS", "$JS.API.STREAM.MSG.GET.DEAD", "$JS.API.CONSUMER.CREATE.ORDERS.spy"],
      release: ["$JS.API.STREAM.MSG.DELETE.ORDERS", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing", "dead.orders.billing"],
      apply: ["$JS.API.STREAM.DELETE.ORDERS", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing", "orders.placed"],
    };
    const subscribes = [">", "orders.>", "$JS.API.>", "$JS.ACK.>", "sortie.>", "_INBOX.>", "_INBOX.sample-pull.>"];
    for (const [role, subjects] of Object.entries(publishes)) {
      const connection = await permitted.as(role as Role)(5_000);
      for (const subject of subjects)
        await expect(connection.request(subject), `${role} ${subject}`).rejects.toMatchObject(refused);
      for (const subject of subscribes.filter((one) => !one.includes(`-${role}.`))) {
        const told = Promise.withResolvers<Error | null>();
        connection.subscribe(subject, { callback: told.resolve });
        expect(await told.promise, `${role} ${subject}`).toMatchObject({
          message: expect.stringMatching(/violation/i),
        });
      }
      disconnect(connection);
    }
    expect((await permitted.jsm.streams.info("ORDERS")).state).toEqual(before);
  });

  it("applies an app of a name that takes no schedules", async ({ expect }) => {
    const plain = createApp({ name: "plain", streams: [defineStream("LOG", { captures: ["log.>"] })] });
    await using permitted = await startPermitted(collect("app", { plain }));
    const { apply } = functionsOf(plain, permitted);
    expect([...(await apply()), ...(await apply())].map(({ action }) => action)).toEqual(["create", "none"]);
    expect(await permitted.refused()).toEqual([]);
  });

  it("applies consumers with several filters", async ({ expect }) => {
    const text = z.string();
    const log = defineStream("LOG", { subjects: { "log.*": text, "audit.done": text }, schedules: false });
    const letters = defineStream("DEAD", { captures: ["dead.>"] });
    const some = defineConsumer(log, "some", { filter: ["log.*", "audit.done"], deadLetter: "dead.some" });
    const all = defineConsumer(log, "all", { deadLetter: "dead.all" });
    const several = createApp({ streams: [log, letters] })
      .on(some, () => {})
      .on(all, () => {});
    await using permitted = await startPermitted(collect("app", { several }));
    const { apply } = functionsOf(several, permitted);
    for (const action of ["create", "none"])
      expect(new Set((await apply()).map((change) => change.action))).toEqual(new Set([action]));
    expect(await permitted.refused()).toEqual([]);
  });

  it("that lacks a permission is told which, by each function, and at once", async ({ expect }) => {
    await using permitted = await startPermitted(collect("app", { sample }));
    const told = (subject: string) =>
      expect.stringMatching(new RegExp(`${subject.replace(/[$.*]/g, "\\$&")}.*sortie permissions`));
    /** The functions, with the login of another one. */
    const as = (who: Parameters<Permitted["as"]>[0]) =>
      functionsOf(sample, { ...permitted, as: () => permitted.as(who) });
    const denied = (subject: string) => ({ code: "permission-denied", message: told(subject) });
    const refused = (subject: string) => ({
      status: 503,
      answer: { type: "urn:sortie:problem:permission-denied", detail: told(subject) },
    });
    await expect(as("http").apply()).rejects.toMatchObject(denied("$JS.API.STREAM.CREATE.ORDERS"));
    await as("apply").apply();
    const order = sampleOf["orders.placed"];
    expect(await as("apply").ask("POST", "/publish/orders.placed", order)).toMatchObject(refused("orders.placed"));
    expect(await as("apply").ask("POST", "/publish/orders.placed?delay=1h", order)).toMatchObject(
      refused("sortie.schedule.ORDERS."),
    );
    expect(await as("pull").ask("GET", "/schedules")).toMatchObject(refused("$JS.API.STREAM.INFO.SORTIE_SCHEDULES"));
    // why it cannot have its answers is in the log: what NATS says of a log-in is nothing to callers
    expect(await as("deaf").ask("POST", "/publish/orders.placed", order)).toMatchObject({
      status: 503,
      answer: { type: "urn:sortie:problem:connection-failed" },
    });
    const released = async (who: Parameters<typeof as>[0]) =>
      (await as(who).release(0)).streams.find(({ stream }) => stream === "ORDERS");
    expect(await released("deaf")).toMatchObject({ error: told("_INBOX.deaf.") });
    expect(await released("pull")).toMatchObject({ error: told("$JS.API.STREAM.INFO.SORTIE_SCHEDULES") });
    const { consumers } = await as("http").pull(0);
    expect(consumers.find(({ consumer }) => consumer === "billing")).toMatchObject({
      ended: "failed",
      error: told("$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing"),
    });
  });
});

describe.concurrent("sortie permissions", () => {
  const logins = (options: PermissionsOptions = {}) => planPermissions(collect("app", { sample }), options);

  it("prints for a server what that takes", async ({ expect }) => {
    await using server = await startNatsServer({ binary: programOf("2.10") });
    const args = [manifest.bin.sortie, "permissions", "functions/app.ts", "--server", server.url];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    expect(stdout).toBe(`${show(logins({ version: "2.10.27" }), {})}\n`);
    expect(stdout).not.toContain("sortie.schedule.ORDERS.*"); // which is for servers that have schedules
    await expect(versionFor({ serverVersion: "new" })).rejects.toThrow(
      'Expected --server-version such as "2.10", got "new"',
    );
  });

  it("is as the documentation shows it", ({ expect }) => {
    const [, shown = ""] = /^```conf\n([\s\S]*?)^```/m.exec(readFileSync("docs/permissions.md", "utf8")) ?? [];
    expect(shown).toContain('user: "sample-release"');
    expect(show(logins(), {})).toContain(shown);
  });

  it("says how a password has to be given, and nats-server takes it so, whatever stands in it", async ({ expect }) => {
    const stream = defineStream("LOG", { subjects: { "log.line": z.string() } });
    const quoted = createApp({ name: "quoted", streams: [stream] });
    const config = show(planPermissions(collect("app", { quoted })), {});
    expect(config).toContain(`export QUOTED_HTTP_PASSWORD='"…"'`);
    for (const [, variable = ""] of config.matchAll(/\$(\w+_PASSWORD)/g)) vi.stubEnv(variable, '"12345678"');
    await using server = await startNatsServer({ config });
    const connection = await connect({ url: server.url.replace("//", "//quoted-http:12345678@") }, 5_000);
    await connection.confirmed;
    disconnect(connection);
  });

  it("prints commands for nsc in a shell's words, or JSON", ({ expect }) => {
    const commands = show(logins(), { nsc: true });
    expect(commands.replaceAll("\\\n", "")).toMatch(
      /^nsc add user --name sample-http +--allow-pub 'orders.placed' +--allow-pub/,
    );
    expect(commands).toContain("--allow-pub '$JS.API.STREAM.NAMES'");
    expect(commands).toContain("--allow-sub '_INBOX.sample-http.>'");
    const { users } = JSON.parse(show(logins({ together: true }), { json: true })) as { users: { user: string }[] };
    expect(users.map(({ user }) => user)).toEqual(["sample-worker", "sample-apply"]);
    expect(() => show([], { json: true, nsc: true })).toThrow("either --json or --nsc, got both");
  });

  it("has no login for who has nothing to do: to nats-server an empty list allows all", ({ expect }) => {
    const quiet = createApp({ streams: [defineStream("LOG", { captures: ["log.>"] })] });
    const users = planPermissions(collect("app", { quiet })).map(({ user }) => user);
    expect(users).toEqual(["http", "apply"]); // there is /health
  });
});
