import { afterAll, beforeAll, describe, expect, it } from "vitest";
import * as z from "zod";
import { createHttp } from "../../src/http/http.ts";
import { createApp, defineStream } from "../../src/index.ts";
import { connect } from "../../src/nats/connection.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { altered } from "../support/connections.ts";
import { type System, startSystem } from "../support/system.ts";

const orders = defineStream("ORDERS", {
  subjects: { "orders.reminder": z.object({ orderId: z.string() }), "notes.*": z.string() },
});
const images = defineStream("IMAGES", { subjects: { "images.resize": z.string() }, schedules: "function" });
const app = createApp({ streams: [orders, images] });

let system: System;
beforeAll(async () => {
  system = await startSystem(app);
});
afterAll(() => system[Symbol.asyncDispose]());

async function ask(method: string, path: string, body?: unknown, token = "s3cret") {
  const http = createHttp(app, {
    connect: (_c, ms) => connect({ url: system.server.url }, ms),
    tokens: () => ({ publish: "other", schedules: "s3cret" }),
  });
  const response = await http.request(path, {
    method,
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    ...(body !== undefined && { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
  return { status: response.status, answer: (await response.json()) as Record<string, unknown> };
}

const reminder = (options: object) => ({ subject: "orders.reminder", data: { orderId: "1" }, ...options });
const problem = (type: string, detail: RegExp = /./) => ({
  type: `urn:sortie:problem:${type}`,
  detail: expect.stringMatching(detail),
});

describe("/schedules", () => {
  it("makes one, shows it, lists it, cancels it, and says so again", async () => {
    const made = await ask("POST", "/schedules", reminder({ id: "of order/1", in: "1h" }));
    const schedule = { id: "of order/1", stream: "ORDERS", at: expect.stringMatching(/Z$/) };
    expect(made).toEqual({ status: 201, answer: { schedule } });
    const path = `/schedules/${encodeURIComponent("of order/1")}`;
    const shown = { ...schedule, subject: "orders.reminder", state: "waiting", data: { orderId: "1" } };
    expect(await ask("GET", path)).toEqual({ status: 200, answer: { schedule: shown } });
    expect(await ask("GET", "/schedules?prefix=of")).toEqual({ status: 200, answer: { schedules: [shown] } });
    const before = new Date(Date.now() + 60_000).toISOString();
    expect(await ask("GET", `/schedules?to=${before}`)).toEqual({ status: 200, answer: { schedules: [] } });
    const cancelled = { status: 200, answer: { id: "of order/1", result: "cancelled" } };
    expect(await ask("DELETE", path)).toEqual(cancelled);
    expect(await ask("DELETE", path)).toEqual(cancelled);
    expect(await ask("GET", path)).toMatchObject({ status: 200, answer: { schedule: { state: "cancelled" } } });
  });

  it("says of one that has fired that it has, and of one that never was that it is not", async () => {
    await ask("POST", "/schedules", reminder({ id: "fired", in: "1h" }));
    expect(await ask("POST", "/schedules/fired/fire")).toEqual({
      status: 200,
      answer: { id: "fired", result: "fired" },
    });
    await expect
      .poll(async () => (await ask("GET", "/schedules/fired")).answer)
      .toMatchObject({
        schedule: { state: "released" },
      });
    for (const [method, path] of [
      ["DELETE", ""],
      ["POST", "/fire"],
    ] as const)
      expect(await ask(method, `/schedules/fired${path}`)).toMatchObject({
        status: 409,
        answer: problem("already-fired"),
      });
    for (const [method, path] of [
      ["GET", ""],
      ["DELETE", ""],
      ["POST", "/fire"],
      ["POST", "/pause"],
    ] as const)
      expect(await ask(method, `/schedules/nope${path}`)).toMatchObject({
        status: 404,
        answer: problem("schedule-unknown"),
      });
  });

  it("makes one that comes again, with its next five times, and pauses and resumes it", async () => {
    const made = await ask("POST", "/schedules", {
      ...reminder({ id: "workdays", cron: "0 9 * * MON-FRI", timeZone: "Europe/Berlin", overlap: "skip" }),
    });
    expect(made.status).toBe(201);
    const { answer } = await ask("GET", "/schedules/workdays");
    expect(answer).toMatchObject({ schedule: { recurring: { cron: "0 9 * * MON-FRI", timeZone: "Europe/Berlin" } } });
    expect((answer as { schedule: { next: string[] } }).schedule.next).toHaveLength(5);
    expect(await ask("POST", "/schedules/workdays/pause")).toMatchObject({ answer: { result: "paused" } });
    expect(await ask("POST", "/schedules/workdays/resume")).toMatchObject({ answer: { result: "resumed" } });
    expect(await ask("DELETE", "/schedules/workdays")).toMatchObject({ answer: { result: "cancelled" } });
  });

  it("asks for the stream where two have one of an id", async () => {
    await ask("POST", "/schedules", reminder({ id: "twice", in: "1h" }));
    await ask("POST", "/schedules", { subject: "images.resize", data: "x", id: "twice", in: "1h" });
    expect(await ask("DELETE", "/schedules/twice")).toMatchObject({
      status: 400,
      answer: problem("invalid-option", /one of stream "ORDERS" and one of stream "IMAGES": say which stream/),
    });
    expect(await ask("DELETE", "/schedules/twice?stream=IMAGES")).toMatchObject({ answer: { result: "cancelled" } });
    expect(await ask("DELETE", "/schedules/twice")).toMatchObject({ answer: { result: "cancelled" } });
  });

  it.each([
    [
      "a subject that no stream has",
      { subject: "nope", data: 1, in: "1h" },
      404,
      "unknown-subject",
      /No stream of this app/,
    ],
    ["a subject with wildcards", { subject: "notes.*", data: "x", in: "1h" }, 404, "unknown-subject", /./],
    ["a payload of another shape", { ...reminder({ in: "1h" }), data: {} }, 422, "invalid-payload", /orderId/],
    ["no payload", { subject: "notes.a", in: "1h" }, 422, "invalid-payload", /JSON value/],
    ["no time", reminder({}), 400, "invalid-option", /got none of them/],
    ["two times", reminder({ in: "1h", every: "1h" }), 400, "invalid-option", /got in and every/],
    ["a negative delay", reminder({ in: -1 }), 400, "invalid-option", /expected milliseconds or a duration/],
    ["an empty cron", reminder({ cron: "", id: "x" }), 400, "invalid-option", /expected `cron`/],
    ["a time zone that is none", reminder({ cron: "@daily", timeZone: "Nowhere" }), 400, "invalid-option", /IANA/],
    ["the year 20000", reminder({ at: "20000-01-01T00:00:00Z" }), 400, "invalid-option", /RFC 3339/],
    ["more than ten years", reminder({ at: "2050-01-01T00:00:00Z" }), 422, "schedule-refused", /within ten years/],
    ["what belongs to another way", reminder({ in: "1h", jitter: "1m" }), 400, "invalid-option", /nothing like jitter/],
    ["an id that is none", reminder({ in: "1h", id: 7 }), 400, "invalid-option", /expected an id/],
    ["what is for apply alone", reminder({ in: "1h", owner: "x" }), 400, "invalid-option", /nothing like owner/],
    ["an unknown property", reminder({ in: "1h", when: "now" }), 400, "invalid-option", /nothing like when/],
    ["no subject", { data: 1, in: "1h" }, 400, "invalid-request", /Expected subject/],
    ["a list", [1], 400, "invalid-request", /Expected a JSON object/],
    ["garbage", "{", 400, "invalid-request", /Expected a JSON object/],
  ])("refuses %s", async (_, body, status, type, detail) => {
    expect(await ask("POST", "/schedules", body)).toMatchObject({ status, answer: problem(type, detail) });
  });

  it.each([
    ["GET", "/schedules?limit=0", 400, "invalid-option", /limit to be a whole number from 1 to 500, got 0/],
    ["GET", "/schedules?limit=many", 400, "invalid-option", /got NaN/],
    ["GET", "/schedules?from=tomorrow", 400, "invalid-option", /expected `from` to be/],
    ["GET", "/schedules?stream=NOPE", 400, "invalid-option", /\(ORDERS, IMAGES\), got "NOPE"/],
    ["GET", "/schedules?page=2", 400, "invalid-request", /got page/],
    ["GET", "/schedules/x?a=b", 400, "invalid-request", /no query parameters but stream, got a/],
    ["GET", `/schedules/${"x".repeat(300)}`, 400, "invalid-option", /an id of 1 to 255/],
    ["PUT", "/schedules", 405, "method-not-allowed", /GET or HEAD or POST/],
  ])("refuses %s %s", async (method, path, status, type, detail) => {
    expect(await ask(method, path)).toMatchObject({ status, answer: problem(type, detail) });
  });

  it("is closed to whoever may only publish", async () => {
    for (const [method, path] of [
      ["GET", "/schedules"],
      ["POST", "/schedules"],
      ["DELETE", "/schedules/x"],
    ] as const)
      expect(await ask(method, path, undefined, "other")).toMatchObject({
        status: 403,
        answer: problem("forbidden"),
      });
  });
});

it("answers with 503, and nothing else, where NATS goes away in the middle", async () => {
  const paths: [string, string, unknown?][] = [
    ["GET", "/schedules"],
    ["POST", "/schedules", reminder({ in: "1h" })],
    ["DELETE", "/schedules/nobody"],
    ["POST", "/publish/orders.reminder?delay=1h", { orderId: "1" }],
  ];
  const token = (path: string) => (path.startsWith("/publish") ? "other" : "s3cret");
  const answers = paths.flatMap(([method, path, body]) =>
    Array.from({ length: 15 }, () => ask(method, path, body, token(path))),
  );
  await Promise.race(answers); // they are under way
  await system.server.kill("SIGKILL");
  const statuses = (await Promise.all(answers)).map(({ status }) => status);
  await system.server.start();
  expect(statuses.filter((status) => ![200, 201, 202, 404, 503].includes(status))).toEqual([]);
  expect(statuses).toContain(503);
});

describe("an Idempotency-Key of a message for later", () => {
  it.for([
    ["function", "released"],
    ["function", "cancelled"],
    [true, "released"],
    [true, "cancelled"],
  ] as const)(
    "is good for one message when that is over, too: %s, %s",
    { timeout: 20_000 },
    async ([kind, over], { expect }) => {
      const tasks = defineStream("TASKS", { subjects: { "tasks.*": z.any() }, schedules: kind, duplicateWindow: "1s" });
      const later = createApp({ streams: [tasks] });
      await using own = await startSystem(later);
      await own.jsm.streams.update("SORTIE_SCHEDULES", { duplicate_window: 1e9 }); // two minutes otherwise
      const http = createHttp(later, {
        connect: (_c, ms) => connect({ url: own.server.url }, ms),
        tokens: () => ({ publish: "s3cret", schedules: "s3cret" }),
      });
      const asked = async (method: string, path: string, body?: unknown) => {
        const headers = {
          Authorization: "Bearer s3cret",
          "Content-Type": "application/json",
          "Idempotency-Key": "order-1",
        };
        const request = { method, headers, ...(body !== undefined && { body: JSON.stringify(body) }) };
        const response = await http.request(path, request);
        return { status: response.status, answer: await response.json() };
      };
      const post = (n: number, subject = "tasks.later") => asked("POST", `/publish/${subject}?delay=1h`, { n });
      const reused = { status: 422, answer: problem("idempotency-key-reused") };
      expect(await post(1)).toMatchObject({ status: 202, answer: { schedule: { id: "order-1" } } });
      if (over === "cancelled") expect((await asked("DELETE", "/schedules/order-1")).status).toBe(200);
      else expect((await asked("POST", "/schedules/order-1/fire")).status).toBe(200);
      await expect
        .poll(async () => (await asked("GET", "/schedules/order-1")).answer, { timeout: 5_000 })
        .toMatchObject({ schedule: { state: over } });
      const again = { status: 202, answer: { schedule: { id: "order-1", state: over } } };
      const both = async () => {
        expect(await post(1)).toMatchObject(again);
        expect(await post(2)).toMatchObject(reused);
        expect(await post(1, "tasks.other")).toMatchObject(reused);
      };
      await both();
      await new Promise((resolve) => setTimeout(resolve, 2_500));
      await both();
      const schedules = await asked("GET", "/schedules");
      expect(schedules.answer).toEqual({ schedules: [] });
      expect((await own.jsm.streams.info("TASKS")).state.messages).toBe(over === "released" ? 1 : 0);
    },
  );

  it.for(["function", true] as const)(
    "replaces none that was made between a look and its own: %s",
    { timeout: 20_000 },
    async (kind, { expect }) => {
      const tasks = defineStream("TASKS", { subjects: { "tasks.*": z.any() }, schedules: kind });
      const later = createApp({ streams: [tasks] });
      await using own = await startSystem(later);
      const owner = createSchedules(await own.connect(), [tasks]);
      let race: (() => Promise<unknown>) | undefined;
      const http = createHttp(later, {
        async connect() {
          const connection = await own.connect();
          return altered(connection, {
            async request(subject, payload, options) {
              const isSent = subject.startsWith("sortie.schedule");
              if (isSent) await race?.();
              if (isSent) race = undefined;
              return connection.request(subject, payload, options);
            },
          });
        },
        tokens: () => ({ publish: "s3cret" }),
      });
      const post = async (id: string) => {
        const headers = { Authorization: "Bearer s3cret", "Content-Type": "application/json", "Idempotency-Key": id };
        const body = JSON.stringify({ n: 2 });
        const response = await http.request("/publish/tasks.later?delay=1h", { method: "POST", headers, body });
        return { status: response.status, answer: await response.json() };
      };
      race = () => owner.schedule("tasks.later", { n: 1 }, { in: "2h", id: "other" });
      expect(await post("other")).toMatchObject({ status: 422, answer: problem("idempotency-key-reused") });
      expect(await owner.get("other")).toMatchObject({ data: { n: 1 } });
      race = () => owner.schedule("tasks.later", { n: 2 }, { in: "2h", id: "same" });
      expect(await post("same")).toMatchObject({ status: 202, answer: { schedule: { id: "same", state: "waiting" } } });
      expect(await post("own")).toMatchObject({ status: 202 });
    },
  );
});
