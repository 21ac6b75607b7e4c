import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { AckPolicy } from "@nats-io/jetstream";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineSchedule, defineStream, type StreamOptions } from "../../src/index.ts";
import type { Connection } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { planConsumer, planStream } from "../../src/provision/plan.ts";
import { scheduled } from "../../src/schedule/schedule.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { type System, startSystem } from "../support/system.ts";

let system: System;
let connection: Connection;
beforeAll(async () => {
  system = await startSystem(createApp({ streams: [] }));
  connection = await system.connect();
});
afterAll(() => system[Symbol.asyncDispose]());

const stream = (name: string, options: StreamOptions<Record<string, z.ZodString>> = {}) =>
  defineStream(name, { subjects: { [`${name.toLowerCase()}.*`]: z.string() }, captures: [`dead.${name}`], ...options });
const applyStream = (...args: Parameters<typeof stream>) =>
  apply(connection, { streams: [stream(...args)], consumers: [] });

describe("apply", () => {
  it("makes on the server what is defined, and nothing the second time", async () => {
    const work = stream("WORK", {
      schedules: false,
      retention: "workqueue",
      maxAge: "7d",
      maxMessages: 1_000,
      maxBytes: 1_000_000,
      duplicateWindow: "5m",
      storage: "memory",
    });
    const worker = defineConsumer(work, "worker", { deadLetter: "dead.WORK", ackWait: "45s", maxAckPending: 7 });
    const definitions = { streams: [work], consumers: [worker] };
    expect((await apply(connection, definitions)).map(({ name, action }) => `${action} ${name}`)).toEqual([
      "create WORK",
      "create SORTIE_ATTEMPTS",
      "create SORTIE_PARKED",
      "create WORK/worker",
      "create SORTIE_PARKED/WORK~worker",
    ]);
    expect((await system.jsm.streams.info("WORK")).config).toMatchObject({
      subjects: ["work.*", "dead.WORK"],
      discard: "new",
      retention: "workqueue",
      storage: "memory",
      max_age: 7 * 86_400e9,
      max_msgs: 1_000,
      max_bytes: 1_000_000,
      duplicate_window: 300e9,
      allow_direct: true,
    });
    expect((await system.jsm.consumers.info("WORK", "worker")).config).toMatchObject({
      durable_name: "worker",
      ack_policy: "explicit",
      ack_wait: 45e9,
      max_deliver: -1,
      max_ack_pending: 7,
      filter_subject: "work.*",
    });
    expect((await apply(connection, definitions)).map(({ action, changes }) => [action, changes])).toEqual(
      Array(5).fill(["none", []]),
    );
  });

  it("catches what the server gives up on for the consumers that are defined, of all apps", async () => {
    const foreign = stream("FOREIGN");
    const consumer = (name: string) =>
      defineConsumer(foreign, name, { deadLetter: "dead.FOREIGN", managed: false, ackWait: "45s" });
    await apply(connection, { streams: [foreign], consumers: [] });
    for (const name of ["one", "two"]) {
      const config = { durable_name: name, ack_policy: AckPolicy.Explicit, ack_wait: 45e9, max_deliver: 2 };
      await system.jsm.consumers.add("FOREIGN", config);
      await apply(connection, { streams: [foreign], consumers: [consumer(name)] });
    }
    const { subjects } = (await system.jsm.streams.info("SORTIE_EXHAUSTED")).config;
    expect(subjects).toEqual(
      ["one", "two"].map((name) => `$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.FOREIGN.${name}`),
    );
  });

  it.each([{ ack_wait: 10e9 }, { ack_wait: 45e9, backoff: [1e9, 60e9], max_deliver: 3 }])(
    "refuses a consumer of someone else whose server does not wait as long as defined: %o",
    async (config) => {
      const hasty = stream("HASTY");
      const consumer = defineConsumer(hasty, "worker", { deadLetter: "dead.HASTY", managed: false, ackWait: "45s" });
      await apply(connection, { streams: [hasty], consumers: [] });
      await system.jsm.consumers.delete("HASTY", "worker").catch(() => {});
      await system.jsm.consumers.add("HASTY", { durable_name: "worker", ack_policy: AckPolicy.Explicit, ...config });
      await expect(apply(connection, { streams: [hasty], consumers: [consumer] })).rejects.toThrow(
        /the server waits \d+ ms for an acknowledgement.*the definition says 45000 ms/,
      );
    },
  );

  it("leaves the streams that apps share as wide as another app needs them", async () => {
    const long = stream("LONG");
    const consumer = (name: string, ttl: "1h" | "7d") =>
      defineConsumer(long, name, { deadLetter: "dead.LONG", idempotency: { ttl }, ackWait: "45s" });
    await apply(connection, { streams: [long], consumers: [consumer("one", "7d")] });
    const again = await apply(connection, { streams: [long], consumers: [consumer("two", "1h")] });
    expect(again.find(({ name }) => name === "SORTIE_KEYS")).toMatchObject({ action: "none" });
    expect((await system.jsm.streams.info("SORTIE_KEYS")).config.max_age).toBe(7 * 86_400e9);
  });

  it("lets messages be scheduled into a stream that nothing could push them out of", async () => {
    await applyStream("TIMED");
    expect((await system.jsm.streams.info("TIMED")).config).toMatchObject({
      subjects: ["timed.*", "dead.TIMED", "sortie.schedule.TIMED.*"],
      allow_msg_schedules: true,
      discard: "old",
    });
  });

  it("takes back what someone else set on a consumer that would garble its messages", async () => {
    const foreign = stream("FOREIGN");
    await apply(connection, { streams: [foreign], consumers: [] });
    await system.jsm.consumers.add("FOREIGN", {
      durable_name: "c",
      ack_policy: "explicit" as never,
      backoff: [1e9, 2e9],
      max_deliver: 4,
      headers_only: true,
      inactive_threshold: 3600e9,
      filter_subject: "foreign.*",
    });
    const definitions = {
      streams: [foreign],
      consumers: [defineConsumer(foreign, "c", { deadLetter: "dead.FOREIGN" })],
    };
    expect((await apply(connection, definitions)).at(-1)?.action).toBe("update");
    const { config } = await system.jsm.consumers.info("FOREIGN", "c");
    expect(config).toMatchObject({ max_deliver: -1, ack_wait: 30e9 });
    expect([config.backoff ?? [], config.headers_only ?? false, config.inactive_threshold ?? 0]).toEqual([
      [],
      false,
      0,
    ]);
    expect((await apply(connection, definitions)).at(-1)?.action).toBe("none");
  });

  it("updates what changed, says what, and leaves settings that it does not have alone", async () => {
    await applyStream("GROW", { maxAge: "1d" });
    await system.jsm.streams.update("GROW", { description: "by hand", max_msg_size: 1234 });
    const [step] = await applyStream("GROW", { maxAge: "2d", captures: ["dead.GROW", "more"] });
    expect(step).toMatchObject({
      action: "update",
      changes: [expect.stringMatching(/^subjects: /), "max_age: 86400000000000 → 172800000000000"],
    });
    expect((await system.jsm.streams.info("GROW")).config).toMatchObject({
      description: "by hand",
      max_msg_size: 1234,
      max_age: 172_800e9,
    });
  });

  it("updates a consumer, its filters as well, without losing its place", async () => {
    const grow = defineStream("FILTER", {
      subjects: { "filter.a": z.string(), "filter.b": z.string() },
      captures: ["dead.FILTER"],
    });
    const one = defineConsumer(grow, "c", { filter: "filter.a", deadLetter: "dead.FILTER" });
    const both = defineConsumer(grow, "c", { deadLetter: "dead.FILTER", ackWait: "1m" });
    await apply(connection, { streams: [grow], consumers: [one] });
    await system.publish("filter.a", "1");
    const delivered = await (await system.js.consumers.get("FILTER", "c")).next();
    await delivered?.ackAck();
    expect((await apply(connection, { streams: [grow], consumers: [both] })).at(-1)?.action).toBe("update");
    const { config, ack_floor } = await system.jsm.consumers.info("FILTER", "c");
    expect(config.filter_subjects).toEqual(["filter.a", "filter.b"]);
    expect(ack_floor.stream_seq).toBe(1);
    expect((await apply(connection, { streams: [grow], consumers: [one] })).at(-1)?.action).toBe("update");
    expect((await system.jsm.consumers.info("FILTER", "c")).config.filter_subject).toBe("filter.a");
  });

  it.each<[string, StreamOptions<Record<string, z.ZodString>>, StreamOptions<Record<string, z.ZodString>>, RegExp]>([
    [
      "RETENTION",
      {},
      { retention: "workqueue" },
      /retention is "limits" on the server and "workqueue" in the definition, and cannot be changed/,
    ],
    ["STORAGE", {}, { storage: "memory" }, /storage is "file".*cannot be changed/],
    [
      "AGE",
      { maxAge: "2d" },
      { maxAge: "1d" },
      /lowering max_age .* could delete stored messages.*nats stream edit AGE/,
    ],
    [
      "COUNT",
      { schedules: false },
      { schedules: false, maxMessages: 5 },
      /lowering max_msgs from unlimited to 5 could delete/,
    ],
    ["SUBJECTS", { captures: ["dead.SUBJECTS", "gone"] }, {}, /stores gone on the server but not in the definition/],
  ])("refuses a change of %s that would lose messages", async (name, before, after, message) => {
    await applyStream(name, before);
    const { config } = await system.jsm.streams.info(name);
    await expect(applyStream(name, after)).rejects.toThrow(message);
    expect((await system.jsm.streams.info(name)).config).toEqual(config);
  });

  it("refuses to have a stream take no schedules while some wait for it", async () => {
    const waiting = stream("WAITING", { schedules: "function" });
    await apply(connection, { streams: [waiting], consumers: [] });
    const schedules = createSchedules(connection, [waiting]);
    await schedules.schedule("waiting.x", "x", { in: "1h", id: "one" });
    await schedules.schedule("waiting.x", "x", { every: "1h", id: "two" });
    await schedules.schedule("waiting.x", "x", { in: "1h", id: "over" });
    await schedules.cancel("over");
    await schedules.pause("two");
    const nameless = { in: "1h", id: "three", nameless: true } as const;
    const outgoing = { subject: "waiting.x", payload: new TextEncoder().encode('"x"') };
    await scheduled(connection, outgoing, waiting, nameless, Date.now()).store(5_000);
    await expect(applyStream("WAITING", { schedules: false })).rejects.toMatchObject({
      code: "provision-refused",
      message: expect.stringMatching(/Stream "WAITING" takes no schedules in its definition, and 3 wait for it/),
    });
    const own = defineSchedule(waiting, "own", { subject: "waiting.x", data: "x", every: "1h" });
    await apply(connection, { streams: [waiting], consumers: [], schedules: [{ owner: "a", schedules: [own] }] });
    for (const id of ["one", "two"]) await schedules.cancel(id);
    await system.jsm.streams.purge("SORTIE_SCHEDULES", { filter: "sortie.schedules.at.WAITING.*.*.*.*.*.whole" });
    const without = stream("WAITING", { schedules: false });
    const left = await apply(connection, {
      streams: [without],
      consumers: [],
      schedules: [{ owner: "a", schedules: [] }],
    });
    expect(left.at(-1)).toMatchObject({ kind: "schedule", action: "remove" }); // its own is cancelled by the same apply
  });

  it("passes on what the server refuses, with the definition's name", async () => {
    await applyStream("FIRST");
    await expect(
      apply(connection, { streams: [defineStream("SECOND", { captures: ["first.x"] })], consumers: [] }),
    ).rejects.toThrow(/The server refused to create stream "SECOND": subjects overlap/);
  });

  it("refuses a consumer whose dead letters nothing stores", async () => {
    const lonely = defineStream("LONELY", { subjects: { lonely: z.string() } });
    const worker = defineConsumer(lonely, "w", { deadLetter: "nowhere" });
    await expect(apply(connection, { streams: [lonely], consumers: [worker] })).rejects.toThrow(
      /no stream captures its dead letters at "nowhere"/,
    );
    await system.jsm.streams.add({ name: "ELSEWHERE", subjects: ["nowhere"] });
    expect(await apply(connection, { streams: [lonely], consumers: [worker] })).toHaveLength(4);
  });

  it("does not take a failure for a missing stream", async () => {
    const cut = await system.connect();
    await cut.close();
    await expect(apply(cut, { streams: [stream("CUT")], consumers: [] })).rejects.toThrow(/closed/);
  });
});

describe("a plan for an older server", () => {
  const old = { schedules: false, messageTtl: false, manyFilters: false };

  it("leaves out what it would silently drop", () => {
    const { config } = planStream(stream("OLD"), undefined, old);
    expect(config.subjects).toEqual(["old.*", "dead.OLD"]);
    expect(config).not.toHaveProperty("allow_msg_schedules");
  });

  it("refuses what it cannot do, naming the version", () => {
    const two = defineStream("TWO", { subjects: { a: z.string(), b: z.string() } });
    expect(() => planConsumer(defineConsumer(two, "c", { deadLetter: "d" }), undefined, old)).toThrow(
      /2 filters, which takes nats-server 2.10/,
    );
  });
});

const cli = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

/** Runs the command line, which may fail. */
function run(args: string[], env: Record<string, string>) {
  return promisify(execFile)(process.execPath, [cli, ...args], { env: { ...process.env, ...env } }).catch(
    ({ stdout, stderr, code }: { stdout: string; stderr: string; code: number }) => ({ stdout, stderr, code }),
  );
}

describe("sortie apply", () => {
  let empty: System;
  beforeAll(async () => {
    empty = await startSystem(createApp({ streams: [] }));
  });
  afterAll(() => empty[Symbol.asyncDispose]());

  const sortie = (args: string[], env: Record<string, string> = {}) =>
    run(args, { NATS_URL: empty.server.url, ...env });

  it("creates the sample system from its TypeScript, and says so", async () => {
    const { stdout } = await sortie(["apply", "functions/app.ts"]);
    expect(
      stdout
        .trim()
        .split("\n")
        .map((line) => line.replace(/ +/g, " ")),
    ).toEqual([
      "created stream ORDERS",
      "created stream IMAGES",
      "created stream DEAD",
      "created stream SORTIE_ATTEMPTS",
      "created stream SORTIE_SCHEDULES",
      "created consumer ORDERS/billing",
      "created consumer ORDERS/reminders",
      "created consumer ORDERS/statements",
      "created consumer IMAGES/resizer",
      "created schedule ORDERS/monthly-statement",
    ]);
    expect((await sortie(["apply", "functions/orders.ts"])).stdout).toMatch(/^(unchanged .*\n){9}$/);
  });

  it.each<[string, string[], Record<string, string>, RegExp]>([
    [
      "no server",
      ["apply", "functions/app.ts"],
      { NATS_URL: "" },
      /^Which server\? Set NATS_URL or pass --server wss:\/\/…\n$/,
    ],
    [
      "a server that is not there",
      ["apply", "functions/app.ts", "--server", "ws://u:s3cret@127.0.0.1:1"],
      {},
      /^Could not connect to NATS at ws:\/\/127.0.0.1:1: [^\n]*\n$/,
    ],
    ["no module", ["apply", "nope.ts"], {}, /nope\.ts/],
    ["no argument", ["apply"], {}, /missing required argument 'module'/],
  ])("fails with a sentence for %s", async (_, args, env, message) => {
    const failed = await sortie(args, env);
    expect(failed).toMatchObject({ code: 1, stderr: expect.stringMatching(message) });
    expect(failed.stderr).not.toContain("s3cret");
  });

  it("fails with a sentence for a module without definitions", async () => {
    const folder = await mkdtemp(join(tmpdir(), "sortie-cli-"));
    await writeFile(join(folder, "empty.ts"), "export const hello: number = 1;\n");
    const { stderr } = await sortie(["apply", join(folder, "empty.ts")]);
    expect(stderr).toMatch(/empty.ts exports hello; expected an app \(createApp\)/);
    await rm(folder, { recursive: true });
  });
});

describe("sortie breaker", () => {
  it("looks at a breaker, opens it and closes it, or says what it needs to know", async () => {
    const folder = await mkdtemp(join(tmpdir(), "sortie-cli-"));
    const library = fileURLToPath(new URL("../../dist/index.js", import.meta.url));
    const file = join(folder, "app.ts");
    await writeFile(
      file,
      `import { defineConsumer, defineStream } from ${JSON.stringify(library)};
       const any = { "~standard": { version: 1, vendor: "none", validate: (value: unknown) => ({ value }) } } as const;
       const stream = defineStream("BROKEN", { subjects: { "broken.a": any }, captures: ["dead.broken"] });
       export const plain = defineConsumer(stream, "plain", { deadLetter: "dead.broken" });
       export const worker = defineConsumer(stream, "worker", { deadLetter: "dead.broken", breaker: { failureRatio: 1 } });`,
    );
    const sortie = async (command: string, ...args: string[]) => {
      const { stdout, stderr } = await run([command, file, ...args], { NATS_URL: system.server.url });
      return stdout + stderr;
    };
    await sortie("apply");
    expect(await sortie("breaker", "worker")).toBe("closed\n");
    expect(await sortie("breaker", "worker", "--trip", "10m")).toMatch(
      /^open since \S+, one message is tried after \S+: opened by hand\n$/,
    );
    expect((await system.jsm.consumers.info("BROKEN", "worker")).paused).toBe(true);
    expect(await sortie("breaker", "BROKEN/worker")).toMatch(/^open since /);
    expect(await sortie("breaker", "worker", "--reset")).toBe("closed\n");
    expect((await system.jsm.consumers.info("BROKEN", "worker")).paused).toBeFalsy();
    expect(await sortie("breaker", "nobody")).toMatch(
      /^Expected one consumer of .* \(BROKEN\/plain, BROKEN\/worker\), got "nobody"\n$/,
    );
    expect(await sortie("breaker", "plain")).toMatch(/is defined without a breaker\n$/);
    expect(await sortie("breaker", "worker", "--trip", "soon")).toMatch(/--trip: expected milliseconds or a duration/);
    await rm(folder, { recursive: true });
  });
});
