import { type ConsumerConfig, JetStreamApiError, type JetStreamManager, type StreamConfig } from "@nats-io/jetstream";
import type { ConsumerDefinition } from "../define/consumer.ts";
import type { FanOut } from "../define/fan-out.ts";
import { companionOf, companionsOf, ownStreams } from "../define/own.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { covers } from "../define/subject.ts";
import { SortieError } from "../errors.ts";
import type { Connection } from "../nats/connection.ts";
import { managerOn, serverIsAtLeast } from "../nats/jetstream.ts";
import { releasesByItself } from "../schedule/native.ts";
import { applySchedules, assertNoneWait, type OwnedSchedules } from "./apply-schedules.ts";
import { planConsumer, planStream, type Step, sharedStream } from "./plan.ts";

/** What became of one definition. */
export interface Applied {
  readonly kind: "stream" | "consumer" | "schedule";
  readonly name: string;
  readonly action: Step<unknown>["action"] | "remove";
  readonly changes: readonly string[];
}

/** The definitions of an app: its streams, and the consumers that have handlers. */
export interface Definitions {
  readonly streams: readonly StreamDefinition[];
  readonly consumers: readonly ConsumerDefinition[];
  /** Where invocations may fan out. */
  readonly fanOut?: FanOut | undefined;
  /** The schedules that its apps define. */
  readonly schedules?: readonly OwnedSchedules[];
}

/**
 * Makes the streams, consumers and schedules on the server as they are defined, one after the other, telling `log` of each; running
 * it again changes nothing.
 * @throws SortieError `provision-refused`, before anything is changed for that definition; and last, when the schedules that
 * the apps have no more are cancelled, where others wait for a stream that takes none.
 */
export async function apply(
  connection: Connection,
  { streams, consumers, fanOut, schedules = [] }: Definitions,
  log: (applied: Applied) => void = () => {},
): Promise<Applied[]> {
  const jsm = await managerOn(connection);
  const can = {
    schedules: releasesByItself(connection),
    messageTtl: serverIsAtLeast(connection, "2.11"),
    manyFilters: serverIsAtLeast(connection, "2.10"),
  };
  const applied: Applied[] = [];
  const done = (one: Applied) => {
    applied.push(one);
    log(one);
  };
  for (const definition of streams)
    await applyStream(definition.name, (current) => planStream(definition, current, can));
  const scheduled = streams.filter(({ schedules }) => schedules);
  for (const own of ownStreams(consumers, { fanOut, scheduled }))
    await applyStream(own.name, (current) => planStream(sharedStream(own, current), current, can));
  for (const definition of consumers) {
    await assertDeadLettersStored(jsm, streams, definition);
    if (definition.managed) await applyConsumer(definition.stream.name, definition);
    else done(await leftAlone(jsm, definition));
    for (const { stream, filter } of companionsOf(definition)) {
      const { ackWaitMs } = definition;
      await applyConsumer(stream, { name: companionOf(definition), filters: [filter], ackWaitMs, maxAckPending: -1 });
    }
  }
  for (const owned of schedules)
    await applySchedules(connection, owned, (action, name, changes = []) =>
      done({ kind: "schedule", name, action, changes }),
    );
  const made = applied.filter(({ kind, action }) => kind === "stream" && action === "create").map(({ name }) => name);
  for (const { name, schedules } of streams)
    if (!schedules && !made.includes(name)) await assertNoneWait(connection, name);
  return applied;

  async function applyStream(
    name: string,
    plan: (current: StreamConfig | undefined) => ReturnType<typeof planStream>,
  ): Promise<void> {
    const step = plan(await found(jsm.streams.info(name).then(({ config }) => config)));
    const [create, update] = [() => jsm.streams.add(step.config), () => jsm.streams.update(name, step.config)];
    done(await carryOut("stream", name, step, create, update));
  }

  async function applyConsumer(stream: string, definition: Parameters<typeof planConsumer>[0]): Promise<void> {
    const { name } = definition;
    const current = await found(jsm.consumers.info(stream, name).then(({ config }) => config));
    const step = planConsumer(definition, current, can);
    const [create, update] = [
      () => jsm.consumers.add(stream, step.config),
      () => jsm.consumers.update(stream, name, step.config),
    ];
    done(await carryOut("consumer", `${stream}/${name}`, step, create, update));
  }
}

async function leftAlone(jsm: JetStreamManager, { name, stream, ackWaitMs }: ConsumerDefinition): Promise<Applied> {
  const info = await found(jsm.consumers.info(stream.name, name));
  if (!info) {
    throw new SortieError(
      "provision-refused",
      `Consumer "${name}" of stream "${stream.name}" is defined as not managed, and does not exist on the server: whoever provisions it has to come first, or leave \`managed: false\` out`,
    );
  }
  const { ack_wait = 0, backoff = [] } = info.config;
  const serverMs = Math.min(ack_wait, ...backoff) / 1_000_000;
  if (serverMs < ackWaitMs) {
    throw new SortieError(
      "provision-refused",
      `Consumer "${name}" of stream "${stream.name}": the server waits ${serverMs} ms for an acknowledgement (its ack_wait, or the least of its backoff), and the definition says ${ackWaitMs} ms, so that messages would go to others while they are being handled. Give the definition ackWait: ${serverMs}`,
    );
  }
  return { kind: "consumer", name: `${stream.name}/${name}`, action: "none", changes: [] };
}

async function carryOut<Config extends Partial<StreamConfig> | Partial<ConsumerConfig>>(
  kind: Applied["kind"],
  name: string,
  { action, changes, config }: Step<Config>,
  create: () => Promise<{ config: object }>,
  update: () => Promise<{ config: object }>,
): Promise<Applied> {
  if (action === "none") return { kind, name, action, changes };
  try {
    const { config: got } = await (action === "create" ? create() : update());
    const dropped = Object.keys(config).filter(
      (key) => config[key as keyof Config] === true && !(got as Config)[key as keyof Config],
    );
    if (dropped.length > 0) {
      throw new SortieError(
        "provision-refused",
        `The server ignored ${dropped.join(", ")}: it is older than the one Sortie is connected to`,
      );
    }
    return { kind, name, action, changes };
  } catch (error) {
    if (!(error instanceof JetStreamApiError)) throw error;
    throw new SortieError("provision-refused", `The server refused to ${action} ${kind} "${name}": ${error.message}`, {
      cause: error,
    });
  }
}

async function assertDeadLettersStored(
  jsm: JetStreamManager,
  streams: readonly StreamDefinition[],
  { name, deadLetter }: ConsumerDefinition,
): Promise<void> {
  if (streams.some(({ subjects }) => subjects.some((subject) => covers(subject, deadLetter)))) return;
  if (await found(jsm.streams.find(deadLetter))) return;
  throw new SortieError(
    "provision-refused",
    `Consumer "${name}": no stream captures its dead letters at "${deadLetter}"; define one, such as defineStream("DEAD", { captures: ["dead.>"] })`,
  );
}

/** Undefined only where the server says that there is none; any other failure is passed on. */
async function found<T>(looked: Promise<T>): Promise<T | undefined> {
  try {
    return await looked;
  } catch (error) {
    const notFound = error instanceof Error && ["StreamNotFoundError", "ConsumerNotFoundError"].includes(error.name);
    if (notFound) return undefined;
    throw error;
  }
}
