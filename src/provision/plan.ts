import {
  AckPolicy,
  type ConsumerConfig,
  DeliverPolicy,
  DiscardPolicy,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
} from "@nats-io/jetstream";
import type { ConsumerDefinition } from "../define/consumer.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import { scheduleSubjects } from "../schedule/native.ts";

/** What applying one definition does. */
export interface Step<Config> {
  readonly action: "create" | "update" | "none";
  readonly config: Config;
  /** Each setting that changes, as in `max_age: 60000000000 → 0`. */
  readonly changes: readonly string[];
}

export interface ServerAbilities {
  /** nats-server 2.12: `allow_msg_schedules`. */
  readonly schedules: boolean;
  /** nats-server 2.11: `allow_msg_ttl`. */
  readonly messageTtl: boolean;
  /** nats-server 2.10: more than one filter for a consumer. */
  readonly manyFilters: boolean;
}

type OwnedStreamConfig = Partial<StreamConfig> & Pick<StreamConfig, "name" | "subjects">;
type OwnedConsumerConfig = Partial<ConsumerConfig> & { durable_name: string };

const ns = (ms: number) => ms * 1_000_000;

/**
 * What it takes to make a stream as defined; settings that a definition does not have are left as they are.
 * @throws SortieError `provision-refused` for a change that the server cannot make, or that would delete stored messages.
 */
export function planStream(
  definition: StreamDefinition,
  current: StreamConfig | undefined,
  can: ServerAbilities,
): Step<OwnedStreamConfig> {
  const schedules = definition.schedules === "server" && can.schedules;
  const wanted: OwnedStreamConfig = {
    name: definition.name,
    subjects: schedules ? [...definition.subjects, scheduleSubjects(definition.name)] : [...definition.subjects],
    retention: definition.retention === "workqueue" ? RetentionPolicy.Workqueue : RetentionPolicy.Limits,
    storage: definition.storage === "memory" ? StorageType.Memory : StorageType.File,
    num_replicas: definition.replicas,
    max_age: ns(definition.maxAgeMs),
    max_msgs: definition.maxMessages,
    max_bytes: definition.maxBytes,
    duplicate_window: ns(definition.duplicateWindowMs),
    discard:
      definition.retention === "workqueue" && definition.schedules !== "server" ? DiscardPolicy.New : DiscardPolicy.Old,
    ...(schedules && { allow_msg_schedules: true }),
    ...(definition.messageTtl && can.messageTtl && { allow_msg_ttl: true }),
    ...(definition.maxMessagesPerSubject !== -1 && { max_msgs_per_subject: definition.maxMessagesPerSubject }),
  };
  const step = compare(wanted, current);
  if (current && step.action === "update") refuseLoss(definition.name, wanted, current);
  return step.action === "create" ? { ...step, config: { ...wanted, allow_direct: true } } : step;
}

/** A stream of Sortie's own, which apps share on a server: what another one needs of it is not lowered. */
export function sharedStream(definition: StreamDefinition, current: StreamConfig | undefined): StreamDefinition {
  if (!current) return definition;
  const ages = [definition.maxAgeMs, current.max_age / 1_000_000];
  const maxAgeMs = ages.includes(0) ? 0 : Math.max(...ages);
  const subjects = [...new Set([...current.subjects, ...definition.subjects])];
  return { ...definition, subjects, maxAgeMs, replicas: Math.max(definition.replicas, current.num_replicas) };
}

/** What it takes to make a consumer as defined. Throws `provision-refused` for what the server is too old for. */
export function planConsumer(
  definition: Pick<ConsumerDefinition, "name" | "filters" | "ackWaitMs" | "maxAckPending">,
  current: ConsumerConfig | undefined,
  can: ServerAbilities,
): Step<OwnedConsumerConfig> {
  const [first, ...others] = definition.filters;
  if (others.length > 0 && !can.manyFilters) {
    throw new SortieError(
      "provision-refused",
      `Consumer "${definition.name}" has ${definition.filters.length} filters, which takes nats-server 2.10 or newer: give it one, or a consumer for each`,
    );
  }
  const wanted: OwnedConsumerConfig = {
    durable_name: definition.name,
    ack_policy: AckPolicy.Explicit,
    ack_wait: ns(definition.ackWaitMs),
    max_deliver: -1, // attempts are ours to count: past the server's limit a message would stay behind, unseen
    max_ack_pending: definition.maxAckPending,
    // what someone else may have set: delays on top of our own, payloads left out, an end after idle hours
    ...(current?.backoff?.length && { backoff: [] }),
    ...(current?.headers_only && { headers_only: false }),
    ...(current?.inactive_threshold && { inactive_threshold: 0 }),
    ...(others.length === 0 ? { filter_subject: first as string } : { filter_subjects: [...definition.filters] }),
  };
  const step = compare(wanted, current);
  // the client merges an update into what the server has, which must not end with both kinds of filter
  if (step.action === "update")
    Object.assign(step.config, { [others.length === 0 ? "filter_subjects" : "filter_subject"]: undefined });
  return step.action === "create" ? { ...step, config: { ...wanted, deliver_policy: DeliverPolicy.All } } : step;
}

function compare<Config extends object>(wanted: Config, current: object | undefined): Step<Config> {
  if (!current) return { action: "create", config: wanted, changes: [] };
  const was = current as Record<string, unknown>;
  const changes = Object.entries(wanted)
    .filter(([key, value]) => !same(value, was[key]))
    .map(([key, value]) => `${key}: ${JSON.stringify(was[key])} → ${JSON.stringify(value)}`);
  return { action: changes.length > 0 ? "update" : "none", config: { ...current, ...wanted }, changes };
}

function same(a: unknown, b: unknown): boolean {
  const sorted = (value: unknown) => JSON.stringify(Array.isArray(value) ? value.toSorted() : value);
  return sorted(a) === sorted(b);
}

function refuseLoss(name: string, wanted: OwnedStreamConfig, current: StreamConfig): void {
  for (const key of ["retention", "storage"] as const) {
    if (wanted[key] !== current[key]) {
      throw new SortieError(
        "provision-refused",
        `Stream "${name}": ${key} is "${current[key]}" on the server and "${wanted[key]}" in the definition, and cannot be changed. Define a stream with another name and move the messages, or delete this one`,
      );
    }
  }
  for (const key of ["max_age", "max_msgs", "max_bytes"] as const) {
    const [from, to] = [
      current[key] > 0 ? current[key] : Infinity,
      (wanted[key] ?? 0) > 0 ? (wanted[key] as number) : Infinity,
    ];
    if (to < from) {
      throw new SortieError(
        "provision-refused",
        `Stream "${name}": lowering ${key} from ${from === Infinity ? "unlimited" : from} to ${to} could delete stored messages. If they may go, lower it by hand first: nats stream edit ${name}`,
      );
    }
  }
  const gone = current.subjects.filter((subject) => !wanted.subjects.includes(subject));
  if (gone.length > 0) {
    throw new SortieError(
      "provision-refused",
      `Stream "${name}" stores ${gone.join(", ")} on the server but not in the definition: what is published there would be stored nowhere. Add it to the definition's \`captures\`, or remove it by hand first: nats stream edit ${name}`,
    );
  }
}
