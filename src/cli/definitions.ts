import type { App } from "../app.ts";
import type { ConsumerDefinition } from "../define/consumer.ts";
import type { FanOut } from "../define/fan-out.ts";
import type { StreamDefinition } from "../define/stream.ts";
import { SortieError } from "../errors.ts";
import type { Definitions } from "../provision/apply.ts";
import type { OwnedSchedules } from "../provision/apply-schedules.ts";

/** Every stream, consumer and schedule that a module exports, itself or within an app. Throws `invalid-option` where it exports none. */
export function collect(file: string, exports: Record<string, unknown>): Definitions {
  const streams = new Map<string, StreamDefinition>();
  const consumers = new Map<string, ConsumerDefinition>();
  const schedules: OwnedSchedules[] = [];
  let fanOut: FanOut | undefined; // of one app or another: what it takes on the server is the same
  const addStream = (stream: StreamDefinition) => streams.set(stream.name, stream);
  const addConsumer = (consumer: ConsumerDefinition) => {
    addStream(consumer.stream);
    consumers.set(`${consumer.stream.name}/${consumer.name}`, consumer);
  };
  for (const exported of Object.values(exports)) {
    if (!isDefinition(exported)) continue;
    if (exported.kind === "stream") addStream(exported);
    if (exported.kind === "consumer") addConsumer(exported);
    if (exported.kind === "app") {
      exported.streams.forEach(addStream);
      for (const { consumer } of exported.bindings) addConsumer(consumer);
      fanOut ??= exported.fanOut;
      if (exported.name !== undefined) schedules.push({ owner: exported.name, schedules: exported.schedules });
    }
  }
  if (streams.size === 0) {
    throw new SortieError(
      "invalid-option",
      `${file} exports ${Object.keys(exports).join(", ") || "nothing"}; expected an app (createApp), streams (defineStream) or consumers (defineConsumer)`,
    );
  }
  return { streams: [...streams.values()], consumers: [...consumers.values()], fanOut, schedules };
}

function isDefinition(exported: unknown): exported is App | StreamDefinition | ConsumerDefinition {
  return typeof exported === "object" && exported !== null && "kind" in exported;
}
