import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import * as z from "zod";
import { type App, createApp, defineSchedule, defineStream, type ScheduleDefinition } from "../../src/index.ts";
import { type Connection, disconnect } from "../../src/nats/connection.ts";
import { type Applied, apply } from "../../src/provision/apply.ts";
import { release } from "../../src/schedule/release.ts";
import { createSchedules, type Schedules } from "../../src/schedule/schedules.ts";
import { type System, startSystem } from "../support/system.ts";

const reports = defineStream("REPORTS", {
  subjects: { "reports.build": z.object({ kind: z.enum(["daily", "weekly"]) }), "reports.send": z.string() },
});

let system: System;
let connection: Connection;
let schedules: Schedules;
beforeAll(async () => {
  system = await startSystem(createApp({ streams: [reports] }));
  connection = await system.connect();
  schedules = createSchedules(connection, [reports]);
});
afterAll(async () => {
  disconnect(connection);
  await system[Symbol.asyncDispose]();
});

async function deploy(name: string, ...defined: ScheduleDefinition<typeof reports>[]): Promise<string[]> {
  const app: App = createApp({ name, streams: [reports], schedules: defined });
  const owned = { owner: name, schedules: app.schedules };
  const applied = await apply(connection, { streams: app.streams, consumers: [], schedules: [owned] });
  return applied
    .filter(({ kind }: Applied) => kind === "schedule")
    .map(({ action, name, changes }) => [action, name, ...changes].join(" "));
}

const daily = (changed: { kind?: "daily" | "weekly"; every?: "1d" | "2d"; until?: Date } = {}) => {
  const { kind = "daily", every = "1d", until } = changed;
  return defineSchedule(reports, "daily", { subject: "reports.build", data: { kind }, every, ...(until && { until }) });
};
const sending = defineSchedule(reports, "sending", {
  subject: "reports.send",
  data: "hello",
  cron: "0 9 * * MON-FRI",
  timeZone: "Europe/Berlin",
});

describe("a schedule that an app defines", () => {
  it("is made, left alone, changed without losing its next time, and removed with its definition", async () => {
    expect(await deploy("shop", daily(), sending)).toEqual(["create REPORTS/daily", "create REPORTS/sending"]);
    expect(await deploy("shop", daily(), sending)).toEqual(["none REPORTS/daily", "none REPORTS/sending"]);
    const before = await schedules.get("daily");
    expect(await deploy("shop", daily({ kind: "weekly" }), sending)).toEqual([
      "update REPORTS/daily data",
      "none REPORTS/sending",
    ]);
    expect(await schedules.get("daily")).toEqual({ ...before, data: { kind: "weekly" } });
    expect(await deploy("shop", daily({ kind: "weekly", every: "2d" }), sending)).toContain(
      "update REPORTS/daily times",
    );
    expect((await schedules.get("daily"))?.at.getTime()).toBeGreaterThan(Date.now() + 1.9 * 86_400_000);
    expect(await deploy("shop", sending)).toEqual(["none REPORTS/sending", "remove REPORTS/daily"]);
    expect(await schedules.get("daily")).toMatchObject({ state: "cancelled" });
    expect(await deploy("shop")).toEqual(["remove REPORTS/sending"]);
    expect(await deploy("shop")).toEqual([]);
  });

  it("is another app's to remove, and stays paused through a deploy", async () => {
    expect(await deploy("one", daily())).toEqual(["create REPORTS/daily"]);
    expect(await deploy("two", sending)).toEqual(["create REPORTS/sending"]);
    await expect(deploy("two", sending, daily())).rejects.toThrow(
      /Schedule "daily" of stream "REPORTS" is there already and belongs to app "one"/,
    );
    expect(await deploy("two")).toEqual(["remove REPORTS/sending"]);
    expect(await schedules.get("daily")).toMatchObject({ state: "waiting" });
    await schedules.pause("daily");
    expect(await deploy("one", daily({ every: "2d" }))).toEqual(["update REPORTS/daily times"]);
    expect(await schedules.get("daily")).toMatchObject({ state: "paused" });
    await schedules.cancel("daily");
    expect(await deploy("one", daily())).toEqual(["create REPORTS/daily"]);
    expect(await deploy("one", daily({ until: new Date(Date.now() - 1_000) }))).toEqual([
      "remove REPORTS/daily until has passed",
    ]);
    expect(await deploy("one")).toEqual([]);
  });

  it("keeps its rhythm where only its end changes, and is done with once its end leaves no time for another", async () => {
    await deploy("ending", daily());
    const before = await schedules.get("daily");
    const until = new Date(Date.now() + 10 * 86_400_000);
    expect(await deploy("ending", daily({ until }))).toEqual(["update REPORTS/daily until"]);
    expect((await schedules.get("daily"))?.at).toEqual(before?.at);
    await schedules.cancel("daily");
    expect(await deploy("ending", daily({ until: new Date(Date.now() + 60_000) }))).toEqual(["none REPORTS/daily"]);
    expect(await deploy("ending")).toEqual([]);
  });

  it("of which two deploys are applied at once is never left over", async () => {
    const many = Array.from({ length: 20 }, (_, n) =>
      defineSchedule(reports, `many ${n}`, { subject: "reports.send", data: "x", every: "1h" }),
    );
    await deploy("twice", ...many);
    const ended = await Promise.allSettled([deploy("twice"), deploy("twice", ...many)]);
    const failed = ended.filter(({ status }) => status === "rejected");
    for (const one of failed) expect(one).toMatchObject({ reason: { code: "provision-refused" } });
    await deploy("twice");
    expect((await schedules.list({ prefix: "many" })).schedules).toEqual([]);
  });

  it("is not asked of a server that keeps none, and let go of with its stream", async () => {
    await using other = await startSystem(createApp({ streams: [] }));
    const own = await other.connect();
    const without = defineStream("WITHOUT", { subjects: { without: z.string() }, schedules: false });
    const apps = [{ owner: "a", schedules: [] }];
    await apply(own, { streams: [without], consumers: [], schedules: apps });
    const gone = defineStream("GONE", { subjects: { gone: z.string() } });
    const defined = defineSchedule(gone, "g", { subject: "gone", data: "x", every: "1h" });
    await apply(own, { streams: [gone], consumers: [], schedules: [{ owner: "a", schedules: [defined] }] });
    await other.jsm.streams.delete("GONE");
    const applied = await apply(own, { streams: [without], consumers: [], schedules: apps });
    expect(applied.at(-1)).toMatchObject({ kind: "schedule", name: "GONE/g", action: "remove" });
    disconnect(own);
  });

  it("is made by the server's clock, whatever the host's says", async ({ onTestFinished }) => {
    const wrong = vi
      .spyOn(Date, "now")
      .mockImplementation(() => performance.timeOrigin + performance.now() - 3_600_000);
    onTestFinished(() => wrong.mockRestore());
    const minutely = defineSchedule(reports, "minutely", { subject: "reports.send", data: "x", cron: "* * * * *" });
    await deploy("late", minutely);
    const at = (await schedules.get("minutely"))?.at.getTime();
    wrong.mockRestore();
    expect(at).toBeGreaterThan(Date.now() - 10_000);
    await deploy("late");
  });

  it("is left alone, and changed, also where the function that has claimed it died", { timeout: 60_000 }, async () => {
    const ticks = defineStream("TICKS", { subjects: { ticks: z.number(), tocks: z.number() }, schedules: "function" });
    const again = (changed: object = {}) =>
      defineSchedule(ticks, "again", { subject: "ticks", data: 1, every: "1s", ...changed } as never);
    const applied = async (definition: ScheduleDefinition) => {
      const owned = { owner: "ticking", schedules: [definition] };
      const all = await apply(connection, { streams: [ticks], consumers: [], schedules: [owned] });
      return all.filter(({ kind }) => kind === "schedule").map(({ action, changes }) => [action, ...changes].join(" "));
    };
    expect(await applied(again())).toEqual(["create"]);
    const ticking = createSchedules(connection, [ticks]);
    const dying = await system.connect();
    const released = release(dying, [ticks], { deadline: Date.now() + 4_000, lingerMs: 3_000 }).catch(() => {});
    await expect
      .poll(() => ticking.get("again"), { interval: 3, timeout: 3_000 })
      .toMatchObject({ state: "releasing" });
    disconnect(dying);
    await released;
    const orphan = await ticking.get("again");
    expect(orphan).toMatchObject({ state: "releasing" });
    expect(await applied(again())).toEqual(["none"]);
    expect(await applied(again({ data: 2 }))).toEqual(["update data"]); // when nobody else can be at it any more
    expect(await applied(again({ data: 3, every: "1h" }))).toEqual(["update times data"]);
    expect((await ticking.get("again"))?.at).toEqual(orphan?.at);
    const living = await system.connect();
    const ticked = async () => {
      await release(living, [ticks], { deadline: Date.now() + 3_000, lingerMs: 1_500 });
      return (await system.jsm.streams.info("TICKS")).state.messages;
    };
    await expect.poll(ticked, { timeout: 30_000 }).toBeGreaterThan(0);
    await ticked();
    disconnect(living);
    const { state } = await system.jsm.streams.info("TICKS");
    const stored = await system.jsm.streams.getMessage("TICKS", { seq: 1 });
    expect([state.messages, stored?.json()]).toEqual([1, 3]); // the time that was being released comes, once
    expect((await ticking.get("again"))?.at.getTime()).toBeGreaterThan(Date.now() + 3_500_000);
    await ticking.cancel("again");
  });

  it("of an id that somebody has scheduled otherwise is refused", async () => {
    await schedules.schedule("reports.build", { kind: "daily" }, { in: "1h", id: "taken" });
    const taking = defineSchedule(reports, "taken", { subject: "reports.send", data: "x", every: "1h" });
    await expect(deploy("taking", taking)).rejects.toThrow(/is there already and was not made by a definition/);
  });

  it("that its subject's schema does not let through is refused", async () => {
    const wrong = defineSchedule(reports, "wrong", {
      subject: "reports.build",
      data: { kind: "hourly" as "daily" },
      every: "1h",
    });
    await expect(deploy("wrong", wrong)).rejects.toThrow(/does not fit the schema of "reports.build": kind/);
  });

  it.each([
    [
      { subject: "reports.*", data: "x", every: "1h" },
      /expected a subject without wildcards that its stream has a schema/,
    ],
    [{ subject: "reports.none", data: "x", every: "1h" }, /expected a subject .* got "reports.none"/],
    [{ subject: "reports.send", data: "x" }, /expected one of `in`, `at`, `every` and `cron`, got none of them/],
    [{ subject: "reports.send", data: "x", cron: "61 * * * *" }, /expected `cron` to be/],
    [
      { subject: "reports.send", data: "x", cron: "* * * * *", timeZone: "Mars" },
      /expected `timeZone` to be an IANA name/,
    ],
    [{ subject: "reports.send", data: 1n, every: "1h" }, /cannot be written as JSON/],
  ])("is refused when it is defined: %o", (options, error) => {
    expect(() => defineSchedule(reports, "bad", options as never)).toThrow(error);
  });

  it("belongs to an app with a name, of its streams, and once", () => {
    expect(() => createApp({ streams: [reports], schedules: [sending] })).toThrow(
      /expected a `name` beside `schedules`/,
    );
    expect(() => createApp({ name: "a", streams: [], schedules: [sending] })).toThrow(
      /expected its stream among the app's/,
    );
    expect(() => createApp({ name: "a", streams: [reports], schedules: [sending, sending] })).toThrow(
      /is defined twice/,
    );
  });
});

describe("sortie schedules", () => {
  it("lists, shows, fires, pauses, resumes and cancels, or says what it needs to know", {
    timeout: 60_000,
  }, async () => {
    const folder = await mkdtemp(join(tmpdir(), "sortie-cli-"));
    const root = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
    const file = join(folder, "app.ts");
    await writeFile(
      file,
      `import { createApp, defineSchedule, defineStream } from ${JSON.stringify(root("dist/index.js"))};
       const any = { "~standard": { version: 1, vendor: "none", validate: (value: unknown) => ({ value }) } } as const;
       const stream = defineStream("CLI", { subjects: { "cli.a": any } });
       const often = defineSchedule(stream, "often", { subject: "cli.a", data: { n: 1 }, every: "1h" });
       export const app = createApp({ name: "cli", streams: [stream], schedules: [often] });`,
    );
    const sortie = async (command: string, ...args: string[]) => {
      const env = { ...process.env, NATS_URL: system.server.url };
      const run = promisify(execFile)(process.execPath, [root("dist/cli/main.js"), command, file, ...args], { env });
      const { stdout, stderr } = await run.catch((failed: { stdout: string; stderr: string }) => failed);
      return stdout + stderr;
    };
    expect(await sortie("apply")).toMatch(/created {4}schedule {2}CLI\/often\n$/);
    expect(await sortie("schedules")).toMatch(/^\S+Z {2}waiting {4}CLI\/often {2}→ cli.a {2}every 3600 s\n$/);
    expect(await sortie("schedules", "often")).toMatch(
      /^waiting {2}CLI\/often.*\n {2}to cli.a: {"n":1}\n( {2}next \S+Z\n){5}$/,
    );
    expect(await sortie("schedules", "often", "--fire")).toBe("fired  often\n");
    expect((await system.jsm.streams.info("CLI")).state.messages).toBe(1);
    expect(await sortie("schedules", "often", "--pause")).toBe("paused  often\n");
    expect(await sortie("schedules", "--prefix", "of")).toMatch(/ paused {5}CLI\/often/);
    expect(await sortie("schedules", "often")).toMatch(
      /^paused {2}CLI\/often.*\n {2}to cli.a: {"n":1}\n {2}next when it is resumed: --resume\n$/,
    );
    expect(await sortie("schedules", "often", "--resume")).toBe("resumed  often\n");
    expect(await sortie("schedules", "often", "--cancel")).toBe("cancelled  often\n");
    expect(await sortie("schedules")).toBe("nothing waits\n");
    expect(await sortie("schedules", "nope")).toBe('There is no schedule "nope"\n');
    expect(await sortie("schedules", "--cancel")).toMatch(
      /^Expected an id and one of .*, got --cancel without an id\n$/,
    );
    expect(await sortie("schedules", "often", "--cancel", "--fire")).toMatch(/got --cancel and --fire\n$/);
    expect(await sortie("schedules", "--stream", "NOPE")).toMatch(/Expected one of .* \(CLI\), got "NOPE"\n$/);
    await rm(folder, { recursive: true });
  });
});
