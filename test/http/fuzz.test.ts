import fc from "fast-check";
import { afterAll, beforeAll, it, vi } from "vitest";
import type { Connection } from "../../src/nats/connection.ts";
import { idOf } from "../../src/schedule/when.ts";
import { type System, startSystem } from "../support/system.ts";
import { app, secrets, signed, surfaceOf } from "./surface.ts";

// Requests made from the document that the app serves, and real ones that are mutated, against the real app and server:
// none crashes it, nothing is stored that was not taken, and no answer tells a secret. CHAOS=full has 100,000 of them.
const count = process.env.CHAOS === "full" ? 100_000 : 500;
const seed = Number(process.env.SEED ?? Date.now() % 2 ** 31);

interface Schema {
  type?: string | string[];
  enum?: unknown[];
  anyOf?: Schema[];
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  format?: string;
  pattern?: string;
  minLength?: number;
  maxLength?: number;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
}
interface Operation {
  parameters?: { name: string; in: "path" | "query" | "header"; required?: boolean; schema: Schema }[];
  requestBody?: { content: { "application/json": { schema: Schema } } };
  responses: Record<string, unknown>;
}
interface Asked {
  method: string;
  path: string;
  headers: Record<string, string>;
  body?: Uint8Array<ArrayBuffer>;
  /** The statuses that the document promises for it, where it has not been mutated. */
  promised?: string[];
}

let system: System;
let shared: Connection;
beforeAll(async () => {
  system = await startSystem(app);
  shared = await kept();
  for (const method of ["log", "warn", "error"] as const) vi.spyOn(console, method).mockReturnValue();
});
afterAll(async () => {
  vi.restoreAllMocks();
  await system[Symbol.asyncDispose]();
});

/** One connection for all requests: they are only to be many. */
async function kept(): Promise<Connection> {
  const connection = await system.connect();
  await connection.confirmed;
  return new Proxy(connection, {
    get(target, name) {
      if (name === "close") return async () => {};
      const value: unknown = Reflect.get(target, name);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

const bytes = (value: string) => new TextEncoder().encode(value);
const json = (value: unknown) => bytes(JSON.stringify(value));

const odd = fc.constantFrom(
  ..."/ // . .. %2e %2E%2e%2f %00 %0d%0a %ff %u0041 \\ ; ? # * > $ $JS.API.INFO _INBOX.x sortie.schedules.x dead.x é ｏ \u202e 😀 %25 %252e ~ : @ & = + ' \" < null".split(
    " ",
  ),
);
const visible = fc.string({
  minLength: 1,
  maxLength: 40,
  unit: fc.integer({ min: 0x21, max: 0x7e }).map((code) => String.fromCharCode(code)),
});
const token = fc.oneof(
  { weight: 6, arbitrary: fc.constant(secrets.admin) },
  { weight: 4, arbitrary: fc.constantFrom(...Object.values(secrets)) },
  { weight: 1, arbitrary: visible },
);
const time = fc
  .integer({ min: -1_000, max: 100_000 })
  .map((seconds) => new Date(Date.now() + seconds * 1_000).toISOString());

/** Values that a schema of the document takes. */
function fitting(schema: Schema): fc.Arbitrary<unknown> {
  if (schema.enum) return fc.constantFrom(...schema.enum);
  if (schema.anyOf) return fc.oneof(...schema.anyOf.map(fitting));
  const [type] = [schema.type ?? "any"].flat();
  if (type === "string" && schema.format === "date-time") return time;
  if (type === "string" && schema.format === "uri") return fc.webUrl();
  if (type === "string" && schema.pattern) return visible;
  if (type === "string")
    return fc.string({ minLength: schema.minLength ?? 0, maxLength: schema.maxLength ?? 60, unit: "binary" });
  if (type === "integer")
    return fc.integer({
      min: schema.minimum ?? schema.exclusiveMinimum ?? 0,
      max: Math.min(schema.maximum ?? 1e6, 1e6),
    });
  if (type === "array") return fc.array(fitting(schema.items ?? {}), { maxLength: 3 });
  if (type !== "object") return fc.jsonValue();
  const properties = Object.entries(schema.properties ?? {}).map(([name, one]) => [name, fitting(one)] as const);
  return fc.record(Object.fromEntries(properties), { requiredKeys: schema.required ?? [] });
}

/** Requests that the document describes. */
function described(
  method: string,
  path: string,
  { parameters = [], requestBody, responses }: Operation,
): fc.Arbitrary<Asked> {
  const segment = fc.oneof(fc.stringMatching(/^[a-z]{1,6}$/), visible, odd);
  const values = parameters.map(({ in: where, required, schema, name }) => {
    const value =
      where === "path" && !schema.enum
        ? segment
        : name === "delay"
          ? fc.constantFrom("0", "5ms", "1h", "2d", "x")
          : fitting(schema);
    return required ? value : fc.option(value, { nil: undefined, freq: 2 });
  });
  const body = requestBody ? fitting(requestBody.content["application/json"].schema) : fc.constant(undefined);
  return fc
    .tuple(fc.tuple(...values), body, fc.option(token, { nil: undefined, freq: 20 }))
    .map(([given, value, shown]) => {
      let filled = path;
      const query = new URLSearchParams();
      const headers: Record<string, string> = { ...(shown !== undefined && { Authorization: `Bearer ${shown}` }) };
      for (const [at, { name, in: where }] of parameters.entries()) {
        const one = given[at];
        if (one === undefined) continue;
        if (where === "path") filled = filled.replace(`{${name}}`, () => encodeURIComponent(`${one}`.toWellFormed()));
        else if (where === "query") query.set(name, `${one}`);
        else headers[name] = `${one}`;
      }
      if (value !== undefined) headers["Content-Type"] = "application/json";
      const search = query.size > 0 ? `?${query}` : "";
      const asked = { method: method.toUpperCase(), path: `${filled}${search}`, headers };
      // in a path dots are gone before anybody sees it
      const isPlain = !/\/(%2e|\.){1,2}(\/|\?|$)|\/(\?|$)/i.test(asked.path);
      return {
        ...asked,
        ...(value !== undefined && { body: json(value) }),
        ...(isPlain && { promised: Object.keys(responses) }),
      };
    });
}

/** What real callers send. */
const real = fc.integer({ min: 0, max: 999 }).chain((n): fc.Arbitrary<Asked> => {
  const headers = { Authorization: `Bearer ${secrets.admin}`, "Content-Type": "application/json" };
  const order = JSON.stringify({ orderId: `${n}` });
  const schedule = json({ subject: "notes.later", data: "x", in: "1h", id: `made ${n % 50}` });
  return fc.constantFrom<Asked>(
    { method: "POST", path: "/publish/orders.placed", headers, body: bytes(order) },
    {
      method: "POST",
      path: "/publish/orders.placed",
      headers: { ...headers, "Idempotency-Key": `key-${n % 50}` },
      body: bytes(order),
    },
    {
      method: "POST",
      path: "/publish/orders.failed?delay=1h",
      headers: { ...headers, "Idempotency-Key": `later-${n % 50}` },
      body: bytes(order),
    },
    {
      method: "POST",
      path: "/publish/orders.placed",
      headers: { "Content-Type": "application/json", ...signed(order, { id: `msg_${n}` }) },
      body: bytes(order),
    },
    { method: "POST", path: "/schedules", headers, body: schedule },
    { method: "GET", path: `/schedules/made%20${n % 50}`, headers },
    { method: "DELETE", path: `/schedules/made%20${n % 50}`, headers },
    { method: "POST", path: "/run/same?stream=IMAGES", headers },
    { method: "GET", path: "/health", headers },
  );
});

const headerNames = [
  "Authorization",
  "Content-Type",
  "Content-Length",
  "Content-Encoding",
  "Transfer-Encoding",
  "Idempotency-Key",
  "webhook-id",
  "webhook-timestamp",
  "webhook-signature",
  "X-HTTP-Method-Override",
  "X-Forwarded-For",
  "Origin",
  "If-Match",
  "Nats-Rollup",
  "Host",
  "Expect",
];
const values = [
  "",
  "0",
  "-1",
  "1e9",
  "NaN",
  "*",
  "null",
  "application/json; charset=utf-7",
  "text/plain",
  "Bearer",
  "Bearer ",
  "chunked",
  "DELETE",
  "sortie.release.x@1",
  "ORDERS.billing.1.1.x",
  "v1,AAAA",
  "127.0.0.1",
];

/** One change to a request, of any part of it. */
const change: fc.Arbitrary<(asked: Asked) => Asked> = fc.oneof(
  fc.tuple(odd, fc.double({ min: 0, max: 1, noNaN: true })).map(([text, where]) => (asked: Asked) => {
    const at = 1 + Math.floor(where * asked.path.length);
    return { ...asked, path: `${asked.path.slice(0, at)}${text}${asked.path.slice(at)}` };
  }),
  fc
    .constantFrom("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "POST", "get", "PROPFIND", "QUERY")
    .map((method) => (asked: Asked) => ({ ...asked, method })),
  fc
    .tuple(fc.constantFrom(...headerNames), fc.oneof(fc.constantFrom(...values), visible))
    .map(([name, value]) => (asked: Asked) => ({
      ...asked,
      headers: { ...asked.headers, [name]: value },
    })),
  token.map((shown) => (asked: Asked) => ({
    ...asked,
    headers: { ...asked.headers, Authorization: `Bearer ${shown}` },
  })),
  fc.constantFrom(...headerNames).map((name) => (asked: Asked) => {
    const { [name]: _, ...headers } = asked.headers;
    return { ...asked, headers };
  }),
  fc
    .constantFrom(
      "delay=1s",
      "at=x",
      "stream=ORDERS",
      "limit=1",
      "token=x",
      "after=%00",
      "prefix=%ff",
      "delay=-1",
      "at=9999-12-31T00:00:00Z",
      "__proto__=x",
    )
    .map((query) => (asked: Asked) => ({
      ...asked,
      path: `${asked.path}${asked.path.includes("?") ? "&" : "?"}${query}`,
    })),
  fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })).map(([at, byte]) => (asked: Asked) => {
    const body = asked.body?.slice() ?? new Uint8Array(1);
    body[at % Math.max(1, body.length)] = byte;
    return { ...asked, body };
  }),
  fc.nat().map((at) => (asked: Asked) => ({ ...asked, body: (asked.body ?? new Uint8Array()).slice(0, at % 40) })),
  fc
    .oneof(
      fc.jsonValue().map(json),
      fc
        .constantFrom(
          '{"__proto__":{"orderId":"x"}}',
          "[".repeat(50_000),
          '{"orderId":"1","orderId":2}',
          `"${"x".repeat(1_100_000)}"`,
          "\ufeff{}",
          '{"subject":"notes.x","data":"x","in":"0s","owner":"x"}',
        )
        .map(bytes),
    )
    .map((body) => (asked: Asked) => ({ ...asked, body: new Uint8Array(body) })),
);

async function requests(): Promise<fc.Arbitrary<Asked>> {
  const response = await surfaceOf(system).request("/openapi.json", {
    headers: { Authorization: `Bearer ${secrets.admin}` },
  });
  const { paths } = (await response.json()) as { paths: Record<string, Record<string, Operation>> };
  const documented = Object.entries(paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({
      arbitrary: described(method, path, operation),
      // what waits becomes many, and is all read; a whole invocation takes its time
      weight: `${method} ${path}` === "get /schedules" ? 1 : /^\/(run|release|health)/.test(path) ? 5 : 20,
    })),
  );
  const whole = fc.oneof(...documented, { arbitrary: real, weight: 60 });
  const mutated = fc
    .tuple(whole, fc.array(change, { minLength: 1, maxLength: 3 }))
    .map(([{ promised: _, ...asked }, changes]) => changes.reduce<Asked>((changed, one) => one(changed), asked));
  return fc.oneof(whole, mutated);
}

function requestOf({ method, path, headers, body }: Asked): Request | undefined {
  const mayHaveBody = !["GET", "HEAD"].includes(method.toUpperCase());
  try {
    return new Request(`https://api.test${path}`, { method, headers, ...(body && mayHaveBody && { body }) });
  } catch {
    return undefined; // no client sends it
  }
}

const all = Object.values(secrets);

it(`stands ${count} requests, and stores what it has taken and nothing else`, { timeout: 1_800_000, retry: 0 }, async ({
  expect,
}) => {
  const http = surfaceOf(system, { connect: async () => shared });
  const streams = await system.jsm.streams.names().next();
  const arbitrary = await requests();
  const taken = new Map<string, string>();
  const later = new Set<string>();
  const ids = new Set<string>();
  const statuses: Record<number, number> = {};

  async function send(asked: Asked, tries = 1): Promise<void> {
    const request = requestOf(asked);
    if (!request) return;
    const said = () =>
      `seed ${seed}: ${asked.method} ${asked.path} ${JSON.stringify(asked.headers)} ${new TextDecoder().decode(asked.body).slice(0, 300)}`;
    const response = await http.fetch(request);
    const text = await response.text();
    // an invocation has a connection of its own, for which a busy machine may take too long
    if (response.status === 503 && text.includes("connection-failed") && tries < 5) return send(asked, tries + 1);
    statuses[response.status] = (statuses[response.status] ?? 0) + 1;
    if (response.status >= 500) expect.fail(`${response.status} ${text} for ${said()}`);
    const told = all.filter((secret) => text.includes(secret));
    if (told.length > 0) expect.fail(`a secret in ${text} for ${said()}`);
    if (asked.promised && request.method === asked.method && !asked.promised.includes(`${response.status}`))
      expect.fail(`${response.status} ${text} is not in the document, for ${said()}`);
    if (response.status >= 400 && request.method !== "HEAD") {
      const problem = JSON.parse(text) as { type: string; status: number };
      if (!problem.type.startsWith("urn:sortie:problem:") || problem.status !== response.status)
        expect.fail(`${text} for ${said()}`);
    }
    if (response.status === 202) {
      const answer = JSON.parse(text) as {
        stream: string;
        sequence: number;
        duplicate: boolean;
        schedule?: { id: string };
      };
      const subject = decodeURIComponent(new URL(request.url).pathname.replace(/^\/publish\//, ""));
      const message = `${subject} ${new TextDecoder().decode(asked.body)}`;
      if (answer.schedule) {
        later.add(message);
        ids.add(answer.schedule.id);
      } else if (!answer.duplicate) taken.set(`${answer.stream} ${answer.sequence}`, message);
    }
    if (response.status === 201) {
      const { subject, data } = JSON.parse(new TextDecoder().decode(asked.body)) as { subject: string; data: unknown };
      later.add(`${subject} ${JSON.stringify(data)}`);
      ids.add((JSON.parse(text) as { schedule: { id: string } }).schedule.id);
    }
  }

  for (let sent = 0, round = 0; sent < count; sent += 1_000, round += 1) {
    const queue = fc.sample(arbitrary, { numRuns: Math.min(1_000, count - sent), seed: seed + round });
    await Promise.all(
      Array.from({ length: 16 }, async () => {
        for (let asked = queue.pop(); asked; asked = queue.pop()) await send(asked);
      }),
    );
  }
  if (count > 500) process.stdout.write(`${JSON.stringify(statuses)}\n`);
  expect(statuses[202]).toBeGreaterThan(count / 50);
  expect(new Set(Object.keys(statuses).map(Number))).toEqual(
    // of a thousand there are seeds of which none asks with another media type
    new Set([
      ...Object.keys(statuses).map(Number),
      200,
      201,
      400,
      401,
      403,
      404,
      405,
      422,
      ...(count > 500 ? [415] : []),
    ]),
  );

  expect(await system.jsm.streams.names().next()).toEqual(streams);
  expect((await system.jsm.streams.info("DEAD")).state.last_seq).toBe(0);
  const images = [...taken.keys()].filter((one) => one.startsWith("IMAGES "));
  expect((await system.jsm.streams.info("IMAGES")).state.last_seq).toBe(images.length);
  const { state } = await system.jsm.streams.info("ORDERS");
  const unexplained: string[] = [];
  const consumer = await system.js.consumers.get("ORDERS", {});
  for (let left = state.messages; left > 0; ) {
    for await (const message of await consumer.fetch({ max_messages: Math.min(left, 5_000), expires: 5_000 })) {
      left -= 1;
      const key = `ORDERS ${message.seq}`;
      const stored = `${message.subject} ${message.string()}`;
      const isSchedule = message.subject.startsWith("sortie.schedule.ORDERS.");
      const id = isSchedule ? idOf(message.subject.split(".").at(-1) ?? "") : undefined;
      const isReleased = message.headers?.has("Sortie-Scheduled-For") || message.headers?.has("Sortie-Schedule");
      const isKnown = id !== undefined ? ids.has(id) : isReleased ? later.has(stored) : taken.get(key) === stored;
      if (!isKnown) unexplained.push(`${key} ${stored}`);
      taken.delete(key);
    }
  }
  expect(unexplained).toEqual([]);
  expect([...taken.keys()].filter((one) => one.startsWith("ORDERS "))).toEqual([]); // all that was said to be stored is
});

it("answers 503, and when to come back, with NATS away", async ({ expect }) => {
  const queue = fc.sample(await requests(), { numRuns: 400, seed });
  await system.server.kill("SIGKILL");
  const surfaces = [surfaceOf(system, { connect: async () => shared }), surfaceOf(system)];
  const statuses = new Set<number>();
  for (const [at, asked] of queue.entries()) {
    const request = requestOf(asked);
    const response = request && (await surfaces[at % 2]?.fetch(request));
    if (!response || response.status < 500) continue;
    statuses.add(response.status);
    expect(Number(response.headers.get("Retry-After")), `seed ${seed}: ${asked.method} ${asked.path}`).toBeGreaterThan(
      0,
    );
    const text = await response.text();
    expect(all.filter((secret) => text.includes(secret))).toEqual([]);
  }
  expect([...statuses]).toEqual([503]);
});
