import { describe, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";
import { type Connection, disconnect } from "../../src/nats/connection.ts";
import { publish } from "../../src/publish/publish.ts";
import { release } from "../../src/schedule/release.ts";
import { scheduled } from "../../src/schedule/schedule.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { altered } from "../support/connections.ts";
import { programOf, type ServerVersion } from "../support/servers.ts";
import { type System, startSystem } from "../support/system.ts";

const tasks = defineStream("TASKS", {
  subjects: { "tasks.later": z.any(), "tasks.other": z.any() },
  schedules: "function",
  duplicateWindow: "1s",
});
const app = createApp({ streams: [tasks] });
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function start(version: ServerVersion = "newest") {
  const system = await startSystem(app, { binary: programOf(version) });
  const open: Connection[] = [];
  const connect = async () => {
    const connection = await system.connect();
    open.push(connection);
    return connection;
  };
  return {
    system,
    connect,
    client: async (now = Date.now) => createSchedules(await connect(), [tasks], { now }),
    run: async (lingerMs: number, now = Date.now, connection?: Connection) =>
      release(connection ?? (await connect()), [tasks], { deadline: now() + lingerMs + 2_000, lingerMs, now }),
    async [Symbol.asyncDispose]() {
      for (const one of open) disconnect(one);
      await system[Symbol.asyncDispose]();
    },
  };
}

async function released({ jsm }: System): Promise<{ data: unknown; lateMs: number }[]> {
  const { state } = await jsm.streams.info("TASKS");
  const found = [];
  for (let seq = Math.max(1, state.first_seq); seq <= state.last_seq; seq++) {
    const message = await jsm.streams.getMessage("TASKS", { seq });
    if (!message || message.subject.startsWith("sortie.")) continue;
    const due = Number(message.header.get("Sortie-Scheduled-For").split(" ").at(-1));
    found.push({ data: message.json(), lateMs: message.time.getTime() - due });
  }
  return found;
}

const dataOf = async (system: System) => (await released(system)).map(({ data }) => data);

describe.concurrent("a schedule", () => {
  it("that comes again is not left out for one before that is handled by its time", async ({ expect }) => {
    const queue = defineStream("QUEUE", {
      subjects: { queue: z.any() },
      retention: "workqueue",
      schedules: "function",
    });
    await using system = await startSystem(createApp({ streams: [queue] }));
    await system.jsm.consumers.add("QUEUE", { durable_name: "worker", ack_policy: "explicit" });
    const connection = await system.connect();
    await createSchedules(connection, [queue]).schedule("queue", 1, { every: "2s", id: "x", overlap: "skip" });
    const running = release(connection, [queue], { deadline: Date.now() + 8_500, lingerMs: 7_000 });
    const consumer = await system.js.consumers.get("QUEUE", "worker");
    const times: number[] = [];
    while (times.length < 3) {
      const message = await consumer.next({ expires: 5_000 });
      const due = Number(message?.headers?.get("Sortie-Scheduled-For"));
      times.push(due);
      await sleep(due + 1_850 - Date.now()); // after the next one would be claimed
      await message?.ackAck();
    }
    expect(times.map((at, n) => at - (times[n - 1] ?? at - 2_000))).toEqual([2_000, 2_000, 2_000]);
    await running;
    disconnect(connection);
  }, 20_000);

  it("of the server that is asked for once more, after it was released or cancelled, is what it was", async ({
    expect,
  }) => {
    const native = defineStream("NATIVE", { subjects: { native: z.any() } });
    await using system = await startSystem(createApp({ streams: [native] }));
    const connection = await system.connect();
    const schedules = createSchedules(connection, [native]);
    const outgoing = (id: string) => ({ stream: "NATIVE", subject: "native", payload: Buffer.from("1"), id });
    const ask = (id: string, ms: number) =>
      scheduled(connection, outgoing(id), native, { id, in: ms }, Date.now()).store(5_000);
    await ask("released", 200);
    await ask("cancelled", 1_500);
    expect(await schedules.cancel("cancelled")).toBe("cancelled");
    await publish(connection, outgoing("published"), 5_000);
    await expect.poll(async () => (await schedules.get("released"))?.state).toBe("released");
    for (const id of ["released", "cancelled", "published"])
      expect(await ask(id, 1_500), id).toMatchObject({ duplicate: true });
    for (const ms of [0, 2_500]) {
      await sleep(ms);
      expect(await schedules.get("released")).toMatchObject({ state: "released" });
      expect(await schedules.get("cancelled")).toMatchObject({ state: "cancelled" });
      expect(await schedules.get("published")).toBeUndefined();
    }
    expect(await schedules.cancel("released")).toBe("already-fired");
    expect(await schedules.cancel("published")).toBe("unknown");
    disconnect(connection);
  }, 20_000);

  it("of the server that its stream would delete just when it is due is refused", async ({ expect }) => {
    const brief = defineStream("BRIEF", { subjects: { brief: z.any() }, maxAge: "3s" });
    await using system = await startSystem(createApp({ streams: [brief] }));
    const connection = await system.connect();
    const schedules = createSchedules(connection, [brief]);
    const refused = schedules.schedule("brief", 1, { in: "2.1s" });
    await expect(refused).rejects.toThrow(/within a second of that.*keeps messages for 3 s/);
    await schedules.schedule("brief", 1, { in: "1.9s", id: "x" });
    await expect
      .poll(async () => (await system.jsm.streams.info("BRIEF", { subjects_filter: "brief" })).state.subjects)
      .toEqual({ brief: 1 });
    disconnect(connection);
  }, 20_000);

  it("of the past that is made again within the minute is released again", async ({ expect }) => {
    await using started = await start("2.10");
    const schedules = await started.client();
    const running = started.run(2_500);
    await sleep(400);
    await schedules.schedule("tasks.later", 1, { at: "2020-01-01T00:00:00Z", id: "x" });
    await sleep(700);
    await schedules.schedule("tasks.later", 2, { at: "2020-01-01T00:00:00Z", id: "x" });
    await running;
    await started.run(0);
    expect(await dataOf(started.system)).toEqual([1, 2]);
  });

  it("that comes again is not lost where it is paused and resumed just before its time", async ({ expect }) => {
    await using started = await start("2.9");
    const schedules = await started.client();
    const running = started.run(3_500);
    const made = Date.now();
    await schedules.schedule("tasks.later", 1, { every: "2s", id: "x", until: new Date(made + 3_900) });
    await sleep(made + 1_500 - Date.now());
    await schedules.pause("x");
    await sleep(made + 1_880 - Date.now());
    await schedules.resume("x");
    await running;
    expect(await dataOf(started.system)).toEqual([1]);
  });

  it("that comes again is released once where it is made again just before its time", async ({ expect }) => {
    await using started = await start();
    const schedules = await started.client();
    const running = started.run(6_500);
    const often = { cron: "*/3 * * * * *", id: "x" };
    const { at } = await schedules.schedule("tasks.later", 1, often);
    await sleep(at.getTime() - Date.now() - 100);
    await schedules.schedule("tasks.later", 1, often);
    await running;
    const planned = (await started.system.jsm.streams.info("TASKS")).state.messages;
    expect(planned).toBeGreaterThan(0);
    expect((await released(started.system)).every(({ lateMs }) => lateMs < 2_000)).toBe(true);
    const ids = new Set();
    for (let seq = 1; seq <= planned; seq++)
      ids.add((await started.system.jsm.streams.getMessage("TASKS", { seq }))?.header.get("Sortie-Id"));
    expect(ids.size).toBe(planned);
  });

  it("that is moved away and back, or made again, as it is looked at is not late", async ({ expect }) => {
    await using started = await start();
    const schedules = await started.client();
    const running = started.run(6_500);
    await sleep(300);
    const [at, count] = [new Date(Date.now() + 3_000), 100];
    const each = (make: (n: number) => Promise<unknown>) =>
      Promise.all(Array.from({ length: count }, (_, n) => make(n)));
    const make = (n: number) => schedules.schedule("tasks.later", n, { at, id: `x${n}` });
    await each(make);
    await each((n) => (n % 2 ? schedules.schedule("tasks.later", n, { in: "1h", id: `x${n}` }) : Promise.resolve()));
    await each(async (n) => {
      await sleep(at.getTime() - Date.now() - 330 + n * 1.2);
      await make(n);
    });
    await running;
    const found = await released(started.system);
    expect(new Set(found.map(({ data }) => data)).size).toBe(count);
    expect(Math.max(...found.map(({ lateMs }) => lateMs))).toBeLessThan(1_500);
  });

  it("is told truly whether it was fired, where it is made again or cancelled at the same time", async ({ expect }) => {
    await using started = await start();
    const [one, another] = [await started.client(), await started.client()];
    for (let n = 0; n < 40; n++) {
      const id = `x${n}`;
      await one.schedule("tasks.later", `old ${n}`, { in: "1h", id });
      const making = sleep(Math.random() * 6).then(() => another.schedule("tasks.later", `new ${n}`, { in: "2h", id }));
      expect(await Promise.all([one.fireNow(id), making])).toMatchObject(["fired", { id }]);
      const all = (await dataOf(started.system)) as string[];
      expect(all.filter((data) => data.endsWith(` ${n}`)).length).toBeGreaterThan(0);
    }
    const native = defineStream("NATIVE", { subjects: { native: z.any() } });
    await using system = await startSystem(createApp({ streams: [native] }));
    const [first, second] = await Promise.all([system.connect(), system.connect()]);
    const [mine, yours] = [createSchedules(first, [native]), createSchedules(second, [native])];
    const told = await Promise.all(
      Array.from({ length: 60 }, async (_, n) => {
        await mine.schedule("native", n, { in: "1h", id: `x${n}` });
        const cancelling = sleep(Math.random() * 5).then(() => mine.cancel(`x${n}`));
        const firing = sleep(Math.random() * 5).then(() => yours.fireNow(`x${n}`));
        return Promise.all([cancelling, firing]);
      }),
    );
    await sleep(1_500);
    const fired: unknown[] = [];
    const { state } = await system.jsm.streams.info("NATIVE", { subjects_filter: "native" });
    for (let seq = 1; seq <= state.last_seq; seq++) {
      const message = await system.jsm.streams.getMessage("NATIVE", { seq });
      if (message?.subject === "native") fired.push(message.json());
    }
    for (const [n, [cancelling, firing]] of told.entries()) {
      const isFired = fired.includes(n);
      const status = await mine.get(`x${n}`);
      expect({ n, cancelling, firing, state: status?.state }).toEqual(
        isFired
          ? { n, cancelling: "already-fired", firing: "fired", state: "released" }
          : { n, cancelling: "cancelled", firing: "cancelled", state: "cancelled" },
      );
    }
    disconnect(first);
    disconnect(second);
  });

  it("is fired or cancelled, where both are asked for at once, as each is told", async ({ expect }) => {
    await using started = await start("2.10");
    const [one, another] = [await started.client(), await started.client()];
    const running = started.run(5_000);
    const answers = await Promise.all(
      Array.from({ length: 60 }, async (_, n) => {
        await one.schedule("tasks.later", n, { in: "1h", id: `x${n}` });
        const cancelling = sleep(Math.random() * 6).then(() => another.cancel(`x${n}`));
        return Promise.all([one.fireNow(`x${n}`), cancelling]);
      }),
    );
    await running;
    const fired = (await dataOf(started.system)) as number[];
    for (const [n, [firing, cancelling]] of answers.entries()) {
      const isFired = fired.filter((one) => one === n).length;
      expect({ n, firing, cancelling, isFired }).toEqual(
        isFired
          ? { n, firing: "fired", cancelling: "already-fired", isFired: 1 }
          : { n, firing: "cancelled", cancelling: "cancelled", isFired: 0 },
      );
    }
  });

  it("is not early where a host's clock is set right while its function waits", async ({ expect }) => {
    await using started = await start();
    const schedules = await started.client();
    await schedules.schedule("tasks.later", 1, { in: "2s", id: "x" });
    await schedules.schedule("tasks.later", 2, { in: "40s", id: "y" });
    let wrongMs = -600_000;
    const running = started.run(3_000, () => Date.now() + wrongMs);
    await sleep(1_000);
    wrongMs = 0;
    await running;
    const found = await released(started.system);
    expect(found.map(({ data }) => data)).toEqual([1]);
    expect(found[0]?.lateMs).toBeGreaterThanOrEqual(0);
  });

  it.for([-108_000_000, -600_000, 3_600_000])(
    "is found at once whatever the clock of who schedules it: %i ms",
    async (ahead, { expect }) => {
      await using started = await start("2.10");
      const { system } = started;
      await system.js.publish("sortie.schedules.done.TASKS", JSON.stringify({ until: Date.now() - 601_000 }));
      const schedules = await started.client(() => Date.now() + ahead);
      const running = started.run(2_500);
      await sleep(300);
      await schedules.schedule("tasks.later", 1, { at: new Date(Date.now() + 1_000), id: "absolute" });
      await schedules.schedule("tasks.later", 2, { in: "1h", id: "fired" });
      // an hour from then may have been long ago: the function that runs releases it by itself
      const fired = ahead < -3_600_000 ? expect.toBeOneOf(["fired", "already-fired"]) : "fired";
      expect(await schedules.fireNow("fired")).toEqual(fired);
      if (ahead < 0) await schedules.schedule("tasks.later", 3, { in: "1s", id: "relative" });
      await running;
      expect((await dataOf(system)).toSorted()).toEqual(ahead < 0 ? [1, 2, 3] : [1, 2]);
    },
  );

  it("is not released by a function that stood still while another one has taken it over", async ({ expect }) => {
    await using started = await start();
    const schedules = await started.client();
    await schedules.schedule("tasks.later", 1, { in: "1500ms", id: "x" });
    const connection = await started.connect();
    const frozen = altered(connection, {
      async request(subject, ...rest) {
        const answer = connection.request(subject, ...rest);
        if (subject !== "sortie.schedules.id.TASKS.x") return answer;
        await sleep(8_500);
        return answer;
      },
    });
    const slow = release(frozen, [tasks], { deadline: Date.now() + 20_000, lingerMs: 12_000 });
    await sleep(2_000);
    await started.run(6_500);
    expect(await dataOf(started.system)).toEqual([1]);
    await slow;
    expect(await dataOf(started.system)).toEqual([1]);
  }, 40_000);

  it.for(["2.10", "newest"] as const)(
    "that comes again is made and resumed by the server's clock, whatever the host's says, on %s",
    async (version, { expect }) => {
      await using started = await start(version);
      for (const wrong of [-3_600_000, 3_600_000]) {
        const schedules = await started.client(() => Date.now() + wrong);
        const isNext = (at: Date | undefined) => {
          const inMs = (at?.getTime() ?? 0) - Date.now();
          expect(inMs).toBeGreaterThan(-1_000);
          expect(inMs).toBeLessThan(60_000);
        };
        const id = `off by ${wrong}`;
        isNext((await schedules.schedule("tasks.later", 1, { cron: "* * * * *", id })).at);
        isNext((await schedules.schedule("tasks.later", 1, { every: "50s", id: `every, ${id}` })).at);
        await schedules.pause(id);
        expect(await schedules.resume(id)).toBe("resumed");
        isNext((await schedules.get(id))?.at);
      }
    },
  );

  it.for(["function", true] as const)(
    "that nobody gave an id is listed with the others: %s",
    async (kind, { expect }) => {
      const later = defineStream("LATER", {
        subjects: { later: z.any(), go: z.any() },
        captures: ["dead.>"],
        schedules: kind,
      });
      const going = defineConsumer(later, "going", { filter: "go", deadLetter: "dead.later" });
      const handling = createApp({ streams: [later] }).on(going, async ({ data }, { schedule }) => {
        await schedule("later", data, { in: "1h" });
      });
      await using system = await startSystem(handling);
      for (const data of [1, 2, 3]) await system.publish("go", data);
      await system.invoke();
      const connection = await system.connect();
      const schedules = createSchedules(connection, [later]);
      await schedules.schedule("later", 4, { in: "1h", id: "named" });
      const found: unknown[] = [];
      for (let after: string | undefined; ; ) {
        const page = await schedules.list({ limit: 1, after });
        found.push(...page.schedules.map(({ data, state, subject }) => [data, state, subject]));
        after = page.next;
        if (after === undefined) break;
      }
      expect(found.toSorted()).toEqual([1, 2, 3, 4].map((data) => [data, "waiting", "later"]));
      expect((await schedules.list({ prefix: "named" })).schedules).toHaveLength(1);
      disconnect(connection);
    },
  );

  it("that comes again into a full stream is cancelled all the same", async ({ expect }) => {
    const full = defineStream("FULL", { subjects: { full: z.any() }, retention: "workqueue", maxMessages: 1 });
    await using system = await startSystem(createApp({ streams: [full] }));
    await system.publish("full", 0);
    const connection = await system.connect();
    const schedules = createSchedules(connection, [full]);
    await schedules.schedule("full", 1, { every: "1s", id: "x" });
    await release(connection, [full], { deadline: Date.now() + 3_500, lingerMs: 1_500 });
    expect(await schedules.get("x")).toMatchObject({ state: "releasing" });
    expect(await schedules.cancel("x")).toBe("cancelled");
    disconnect(connection);
  });

  it("that is refused leaves the one before, and no word of itself", async ({ expect }) => {
    const native = defineStream("NATIVE", { subjects: { native: z.any() } });
    await using system = await startSystem(createApp({ streams: [native] }));
    const connection = await system.connect();
    const schedules = createSchedules(connection, [native]);
    const big = "p".repeat(1 << 20);
    await expect(schedules.schedule("native", big, { in: "1h", id: "never" })).rejects.toThrow(/bytes/);
    expect(await schedules.cancel("never")).toBe("unknown");
    await schedules.schedule("native", 1, { in: "1s", id: "x" });
    await expect(schedules.schedule("native", big, { in: "1h", id: "x" })).rejects.toThrow(/bytes/);
    await expect.poll(() => schedules.get("x")).toMatchObject({ state: "released" });
    expect(await schedules.cancel("x")).toBe("already-fired");
    await expect(
      schedules.schedule("native", big.slice(0, 1_043_078), { every: "1s", id: "é".repeat(250) }),
    ).rejects.toThrow(/bytes/);
    disconnect(connection);
  });

  it("leaves nothing behind for ever where it is cancelled, also on a server that forgets nothing", async ({
    expect,
  }) => {
    await using started = await start("2.10");
    const schedules = await started.client();
    await schedules.schedule("tasks.later", 1, { in: "1h", id: "x" });
    expect(await schedules.cancel("x")).toBe("cancelled");
    const filter = { subjects_filter: "sortie.schedules.at.>" };
    const { state } = await started.system.jsm.streams.info("SORTIE_SCHEDULES", filter);
    const times = Object.keys(state.subjects ?? {}).map((subject) => Number(subject.split(".").at(-2)));
    expect(Math.max(...times)).toBeGreaterThan(Date.now() + 6.9 * 86_400_000);
  });

  it("is told of by its own id, when its message comes again from where it was parked", async ({ expect }) => {
    const kept = defineStream("KEPT", { subjects: { kept: z.any() }, captures: ["dead.>"], schedules: "function" });
    const retry = { attempts: 2, backoff: fixed("5s") };
    const worker = defineConsumer(kept, "worker", { filter: "kept", deadLetter: "dead.x", maxAckPending: 100, retry });
    const seen: unknown[] = [];
    const handling = createApp({ streams: [kept] }).on(worker, ({ id, schedule, attempt }) => {
      seen.push([attempt, id, schedule?.id]);
      if (attempt === 1) throw new Error("later");
    });
    await using system = await startSystem(handling);
    const connection = await system.connect();
    await createSchedules(connection, [kept]).schedule("kept", 1, { in: 0, id: "one ü" });
    await release(connection, [kept], { deadline: Date.now() + 2_000 });
    disconnect(connection);
    await system.invoke();
    await expect
      .poll(async () => (await system.invoke()) && seen, { timeout: 10_000, interval: 300 })
      .toEqual([
        [1, "one ü", "one ü"],
        [2, "one ü", "one ü"],
      ]);
  });
});

describe("what is no schedule", () => {
  it("is refused, saying what was got", async ({ expect }) => {
    await using started = await start();
    const schedules = (await started.client()) as unknown as Record<string, (...all: unknown[]) => Promise<unknown>>;
    const refused = async (call: string, all: unknown[], code: string, message: RegExp) =>
      await expect(schedules[call]?.(...all), call).rejects.toMatchObject({
        name: "SortieError",
        code,
        message: expect.stringMatching(message),
      });
    const options: [unknown, RegExp][] = [
      [null, /for "tasks.later": expected options such as \{ in: "30s" \}, got null$/],
      [undefined, /expected options .* got undefined$/],
      [{ in: 10n }, /expected milliseconds .* got 10n$/],
      [{ in: Number.NaN }, /got NaN$/],
      [{ in: Infinity }, /got Infinity$/],
      [{ in: Symbol("x") }, /got Symbol\(x\)$/],
      [{ at: 10n }, /expected `at` to be a Date .* got 10n$/],
      [{ at: new Date(Number.NaN) }, /got an invalid Date$/],
      [{ cron: "* * * * *".padEnd(100_000), id: "x" }, /expected `cron` to have 1000 characters at most, not 100000/],
    ];
    for (const [given, message] of options)
      await refused("schedule", ["tasks.later", 1, given], "invalid-option", message);
    for (const subject of [null, 5])
      await refused(
        "schedule",
        [subject, 1, { in: 0 }],
        "unknown-subject",
        /expected its subject to be a text, got (null|5)$/,
      );
    for (const call of ["get", "cancel", "fireNow", "pause", "resume"])
      await refused(call, ["x", null], "invalid-option", /Schedule "x": expected nothing, or a stream .* got null$/);
    await refused("list", [null], "invalid-option", /expected nothing, or options .* got null$/);
    for (const [name, given, got] of [
      ["from", "2030-01-01T00:00:00Z", '"2030-01-01T00:00:00Z"'],
      ["to", new Date(Number.NaN), "an invalid Date"],
      ["prefix", 5, "5"],
      ["after", null, "null"],
      ["limit", Symbol("x"), "Symbol(x)"],
      ["stream", 5n, "5n"],
    ] as const) {
      const listed = schedules.list?.({ [name]: given });
      await expect(listed, name).rejects.toMatchObject({
        code: "invalid-option",
        message: expect.stringContaining(got),
      });
    }
  });

  it("is not early against a time that is finer than a millisecond", async ({ expect }) => {
    await using started = await start();
    const schedules = await started.client();
    const scheduled = async (at: string) => (await schedules.schedule("tasks.later", 1, { at })).at.toISOString();
    expect(await scheduled("2030-01-01T00:00:00.0005Z")).toBe("2030-01-01T00:00:00.001Z");
    expect(await scheduled("2030-01-01T00:00:00.9991+00:00")).toBe("2030-01-01T00:00:01.000Z");
    expect(await scheduled("2030-01-01T00:00:00.123000Z")).toBe("2030-01-01T00:00:00.123Z");
  });
});
