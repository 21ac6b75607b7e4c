import { AckPolicy } from "@nats-io/jetstream";
import type { Binding, HandlerContext } from "../../src/consume/handler.ts";
import { invoke } from "../../src/consume/invocation.ts";
import type { InvocationEvent, InvocationReport } from "../../src/consume/report.ts";
import type { ConsumerDefinition } from "../../src/define/consumer.ts";
import { breakerSubject, breakersStream, companionOf, companionsOf, parks } from "../../src/define/own.ts";
import { covers } from "../../src/define/subject.ts";
import { createHttp } from "../../src/http/http.ts";
import { type App, type Message, RetryAfterError, type StreamDefinition } from "../../src/index.ts";
import { disconnect } from "../../src/nats/connection.ts";
import { serverIsAtLeast } from "../../src/nats/jetstream.ts";
import { recordsIn } from "../../src/nats/records.ts";
import { apply, apply as applyAll } from "../../src/provision/apply.ts";
import type { OwnedSchedules } from "../../src/provision/apply-schedules.ts";
import { publish } from "../../src/publish/publish.ts";
import { nativeFor, replaceNative } from "../../src/schedule/native.ts";
import { pendingFor, pendingHeaders, scheduleSubject } from "../../src/schedule/pending.ts";
import { release } from "../../src/schedule/release.ts";
import { scheduled } from "../../src/schedule/schedule.ts";
import { tokenOf } from "../../src/schedule/when.ts";
import type { Permitted } from "./permitted.ts";

/** A payload for each of an app's subjects. */
export type Samples = Readonly<Record<string, unknown>>;

/** Functions of an app, each with its login. */
export function functionsOf(
  app: Pick<App, "streams" | "bindings" | "fanOut">,
  permitted: Pick<Permitted, "as" | "definitions">,
) {
  const http = createHttp(app as App, {
    connect: (_c, ms) => permitted.as("http")(ms),
    tokens: () => ({ publish: "token", schedules: "token", run: "token" }),
  });
  return {
    async ask(method: string, path: string, body?: unknown, key?: string) {
      const response = await http.request(path, {
        method,
        headers: {
          Authorization: "Bearer token",
          "Content-Type": "application/json",
          ...(key !== undefined && { "Idempotency-Key": key }),
        },
        ...(body !== undefined && { body: typeof body === "string" ? body : JSON.stringify(body) }),
      });
      return { status: response.status, answer: (await response.json()) as Record<string, unknown> };
    },
    pull: (lingerMs: number, more: object = {}): Promise<InvocationReport> =>
      invoke({
        streams: app.streams,
        bindings: app.bindings,
        fanOut: app.fanOut,
        connect: permitted.as("pull"),
        deadline: Date.now() + 15_000,
        linger: lingerMs,
        log() {},
        ...more,
      }),
    async release(lingerMs: number) {
      const connection = await permitted.as("release")(5_000);
      try {
        return await release(connection, app.streams, { deadline: Date.now() + lingerMs + 3_000, lingerMs });
      } finally {
        disconnect(connection);
      }
    },
    async apply() {
      const connection = await permitted.as("apply")(5_000);
      try {
        return await apply(connection, permitted.definitions);
      } finally {
        disconnect(connection);
      }
    },
  };
}

/**
 * Has the functions of an app do all that they can do. A handler does what its message's id says: `publish` publishes to all
 * subjects, `probe` also schedules into all streams, and cancels; `fail` fails once, `park` is to be retried later. Only what is `thorough`
 * takes over what was claimed long ago, which takes five seconds. Answers what went wrong.
 */
export async function fly(
  permitted: Permitted,
  samples: Samples,
  { thorough = false }: { thorough?: boolean } = {},
): Promise<string[]> {
  const { definitions, js, jsm } = permitted;
  const { streams, consumers, fanOut } = definitions;
  const [first] = consumers as [ConsumerDefinition];
  const [owned] = definitions.schedules as [OwnedSchedules];
  const taking = streams.filter(({ schedules }) => schedules);
  const wrong: string[] = [];
  const failed = new Set<string>();
  const bindings = consumers.map((consumer) => ({ consumer, handler }) as unknown as Binding);
  const { ask, pull, release, apply } = functionsOf({ streams, bindings, ...(fanOut && { fanOut }) }, permitted);
  const admin = await permitted.admin();
  const onServer = serverIsAtLeast(admin, "2.12");
  const breakers = recordsIn(admin, breakersStream, "circuit breakers");

  await provision();
  const overdue = thorough ? takeOver() : undefined;
  overdue?.catch(() => {}); // told at the end
  await Promise.all([publishAll(), scheduleAll(), redeliver()]);
  const place = { id: "a", until: Date.now() + 20_000 };
  await Promise.all([pullWhole(700, fanOut && { place }), releaseWhole(2_200)]);
  await probe();
  await overdue;
  await lose();
  disconnect(admin);
  return wrong;

  function check(holds: boolean, what: string, got?: unknown): void {
    if (!holds) wrong.push(`${what}${got === undefined ? "" : `: ${JSON.stringify(got)}`}`);
  }

  async function handler({ id }: Message, context: HandlerContext): Promise<void> {
    if (/^(fail|park)/.test(id) && !failed.has(id)) {
      failed.add(id);
      throw id.startsWith("park") ? new RetryAfterError("later", "6s") : new Error("as it should");
    }
    if (!/^(probe|publish)/.test(id)) return;
    for (const [subject, data] of Object.entries(samples)) await context.publish(subject as never, data as never);
    for (const stream of id.startsWith("publish") ? [] : taking) {
      const [subject, data] = [subjectIn(stream) as never, samples[subjectIn(stream)] as never];
      await context.schedule(subject, data, { in: "1h" });
      await context.schedule(subject, data, { in: "1h", id: `by handler ${stream.name}` });
      await context.schedule(subject, data, { every: "1h", id: `by handler again ${stream.name}` });
      const cancelled = await context.cancel(`for handler ${stream.name}`);
      check(cancelled === "cancelled", `cancelling in a handler, for ${stream.name}`, cancelled);
    }
  }

  function subjectsIn({ subjects }: StreamDefinition): string[] {
    return Object.keys(samples).filter((one) => subjects.some((each) => covers(each, one)));
  }

  function subjectIn(stream: StreamDefinition): string {
    return subjectsIn(stream)[0] as string;
  }

  function subjectOf({ filters }: ConsumerDefinition): string {
    return Object.keys(samples).find((subject) => filters.some((filter) => covers(filter, subject))) as string;
  }

  function messageFor(subject: string) {
    return { subject, payload: new TextEncoder().encode(JSON.stringify(samples[subject])) };
  }

  async function pullWhole(lingerMs: number, more?: object): Promise<void> {
    const log = (event: InvocationEvent) => {
      const isDenied = "error" in event && /violation/i.test(event.error);
      check(!isDenied, "handling", event);
    };
    const { consumers, continued } = await pull(lingerMs, { log, ...more });
    for (const { consumer, error, unconfirmed } of consumers)
      check(!error && unconfirmed === 0, `pulling for ${consumer}`, error ?? unconfirmed);
    check(!continued?.error, "going on", continued);
  }

  async function releaseWhole(lingerMs: number): Promise<void> {
    for (const { stream, error } of (await release(lingerMs)).streams) check(!error, `releasing for ${stream}`, error);
  }

  /** Also over what differs from the definitions, and with schedules that are defined no more, or were never finished. */
  async function provision(): Promise<void> {
    const foreign = consumers.filter(({ managed }) => !managed);
    if (foreign.length > 0) await apply().catch(() => {}); // makes their streams, and misses them
    for (const consumer of foreign) {
      const config = { durable_name: consumer.name, ack_policy: AckPolicy.Explicit, ack_wait: 30e9, max_deliver: 1 };
      await jsm.consumers.add(consumer.stream.name, { ...config, filter_subject: subjectOf(consumer) });
    }
    await apply();
    const former = taking.map((stream) => {
      const what = { ...messageFor(subjectIn(stream)), recurring: { every: "1h" } as const };
      return { kind: "schedule", stream, id: `former ${stream.name}`, ...what } as const;
    });
    await applyAll(admin, { ...definitions, schedules: [{ ...owned, schedules: [...owned.schedules, ...former] }] });
    for (const { stream, id, subject, payload } of owned.schedules) {
      await jsm.streams.purge("SORTIE_SCHEDULES", { filter: scheduleSubject(stream.name, tokenOf(id)) });
      if (!onServer || stream.schedules !== "server") continue;
      const native = nativeFor({ subject, payload }, stream, id, new Date(Date.now() + 600_000), Date.now(), "");
      await replaceNative(admin, native, stream.name, 5_000);
    }
    const streamsThere = (await jsm.streams.list().next()).map(({ config }) => config.name);
    for (const name of streamsThere) await jsm.streams.update(name, { max_age: 150e9 });
    const applied = await apply();
    const updated = applied.filter(({ kind, action }) => kind === "stream" && action === "update");
    check(updated.length === streamsThere.length, "updating streams", applied);
    check(applied.filter(({ action }) => action === "remove").length === taking.length, "removing schedules", applied);
  }

  /** Schedules that another function has claimed long ago, and that it may have released. */
  async function takeOver(): Promise<void> {
    for (const stream of taking) {
      const pending = { stream: stream.name, id: `claimed ${stream.name}`, at: Date.now() - 600_000 };
      const [schedule, note] = pendingFor(messageFor(subjectIn(stream)), pending, Date.now());
      const claimed = [pendingHeaders.releasing, `1 0 ${Date.now() - 600_000}`] as const;
      await publish(admin, { ...schedule, headers: [...(schedule.headers ?? []), claimed] }, 5_000);
      await publish(admin, note, 5_000);
    }
    await releaseWhole(5_500);
    for (const { name } of taking) {
      const { answer } = await ask("GET", `/schedules/claimed%20${name}?stream=${name}`);
      const { state } = (answer.schedule ?? {}) as { state?: string };
      check(state === "released", `taking over what was claimed for ${name}`, answer);
    }
  }

  async function publishAll(): Promise<void> {
    for (const [subject, data] of Object.entries(samples)) {
      const made = await ask("POST", `/publish/${subject}`, data, `key-${subject}`);
      check(made.status === 202, `publishing to ${subject}`, made);
      const other = await ask("POST", `/publish/${subject}`, `${JSON.stringify(data)} `, `key-${subject}`);
      check(other.status === 422, `using a key of ${subject} again`, other);
    }
  }

  async function scheduleAll(): Promise<void> {
    for (const stream of taking) {
      const { name } = stream;
      const [subject, data] = [subjectIn(stream), samples[subjectIn(stream)]];
      const make = async (id: string, how: object) => {
        const made = await ask("POST", "/schedules", { subject, data, id: `${id} ${name}`, ...how });
        check(made.status === 201, `scheduling into ${name}`, made);
      };
      const does = async (method: string, id: string, what: string, result: string) => {
        const done = await ask(method, `/schedules/${id}%20${name}${what}?stream=${name}`);
        check(done.answer.result === result, `${method} ${what} of ${id} ${name}`, done);
      };
      const delayed = await ask("POST", `/publish/${subject}?delay=300`, data);
      check(delayed.status === 202, `publishing to ${subject} later`, delayed);
      await make("for handler", { in: "1h" });
      await make("one", { in: "1h" });
      await does("DELETE", "one", "", "cancelled");
      await make("two", { in: "1h" });
      await does("POST", "two", "/fire", "fired");
      await make("again", { every: "1s", overlap: "skip" });
      await does("POST", "again", "/pause", "paused");
      await does("POST", "again", "/resume", "resumed");
      // as they were made when the server was older: a function releases them
      const older = { ...stream, schedules: "function" } as const;
      const named = { in: "1h", id: `old ${name}` } as const;
      await scheduled(admin, messageFor(subject), older, named, Date.now()).store(5_000);
      await does("POST", "old", "/fire", "fired");
      for (const each of subjectsIn(stream)) {
        const nameless = { in: 300, id: crypto.randomUUID(), nameless: true };
        await scheduled(admin, messageFor(each), older, nameless, Date.now()).store(5_000);
      }
    }
    const listed = await ask("GET", "/schedules");
    check(listed.status === 200, "listing schedules", listed);
    const health = await ask("GET", "/health");
    check(health.status === 200, "looking how it is", health);
  }

  /** What was handed out before is looked up, what cannot be read is a dead letter; and what each option of a consumer does. */
  async function redeliver(): Promise<void> {
    for (const consumer of consumers) {
      const { stream, name, breaker, idempotency } = consumer;
      const { subject, payload } = messageFor(subjectOf(consumer));
      await js.publish(subject, payload);
      (await (await js.consumers.get(stream.name, name)).next({ expires: 2_000 }))?.nak();
      await js.publish(subject, "{");
      const ids = [
        ...(parks(consumer) ? [`park:${name}`] : []),
        ...(breaker ? [`fail:${name}:1`, `fail:${name}:2`] : []),
        ...(idempotency?.key ? [`same:${name}:1`, `same:${name}:2`] : []),
      ];
      for (const msgID of ids) await js.publish(subject, payload, { msgID });
    }
  }

  async function probe(): Promise<void> {
    const { subject, payload } = messageFor(subjectOf(first));
    await js.publish(subject, payload, { msgID: "probe" });
    await pullWhole(500);
    const ids = (await ask("GET", "/schedules?prefix=by")).answer.schedules as unknown[];
    check(ids.length === 2 * taking.length, "scheduling in a handler", ids);
    for (const { name, deadLetter } of consumers) {
      const letter = await jsm.streams.getMessage("DEAD", { last_by_subj: deadLetter });
      check(letter !== null, `dead letters of ${name}`);
    }
  }

  /** What is missing on the server is told, and not taken for something that passes. */
  async function lose(): Promise<void> {
    const companions = consumers.flatMap((consumer) =>
      companionsOf(consumer).map(({ stream }) => ({ consumer, stream, name: companionOf(consumer) })),
    );
    for (const lost of new Set(companions.map(({ stream }) => stream))) {
      const those = companions.filter(({ stream }) => stream === lost);
      for (const { name } of those) await jsm.consumers.delete(lost, name);
      const { consumers: told } = await pull(0);
      for (const { consumer, name } of those) {
        const error = told.find((one) => one.consumer === consumer.name)?.error ?? "";
        check(error.includes(`"${name}" of stream "${lost}" does not exist`), `${name} of ${lost} is gone`, error);
      }
      await apply();
    }
    const other = streams.find(
      (stream) => stream !== first.stream && subjectsIn(stream).length > 0,
    ) as StreamDefinition;
    await jsm.streams.delete(other.name);
    const published = await ask("POST", `/publish/${subjectIn(other)}`, samples[subjectIn(other)]);
    check(`${published.answer.type}`.endsWith("stream-missing"), "publishing into no stream", published);
    const { subject, payload } = messageFor(subjectOf(first));
    await js.publish(subject, payload, { msgID: "publish" });
    const events: InvocationEvent[] = [];
    const log = (event: InvocationEvent) => void events.push(event);
    await pullWhole(0, { bindings: bindings.filter(({ consumer }) => consumer === first), log });
    const isTold = events.some((event) => event.event === "retried" && /reached no stream/.test(event.error));
    check(isTold, "publishing into no stream, in a handler", events);
    for (const consumer of consumers) {
      if (consumer.stream !== other) await jsm.consumers.delete(consumer.stream.name, consumer.name);
      if (consumer.breaker)
        await breakers.remove((await breakers.read(breakerSubject(consumer), 5_000))?.revision ?? 0, 5_000);
    }
    for (const { consumer, error = "" } of (await pull(0)).consumers)
      check(/does not exist on the server/.test(error), `${consumer} is gone`, error);
  }
}
