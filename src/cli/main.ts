#!/usr/bin/env node
import { Command } from "commander";
import { type BreakerStatus, readBreaker, resetBreaker, tripBreaker } from "../consume/breaker-control.ts";
import { type Duration, toMs } from "../duration.ts";
import { SortieError } from "../errors.ts";
import { type Applied, apply } from "../provision/apply.ts";
import { planPermissions } from "../provision/permissions.ts";
import { createSchedules } from "../schedule/schedules.ts";
import { type PermissionsCommandOptions, show, versionFor } from "./permissions.ts";
import { lookAfter, type SchedulesOptions } from "./schedules.ts";
import { definitionsIn, session } from "./session.ts";

const program = new Command("sortie").description("NATS JetStream for functions that don't stay up");
const moduleArgument = "the file that exports the app, or its definitions (TypeScript or JavaScript)";
const serverOption = [
  "--server <url>",
  "the server's WebSocket URL; login by NATS_CREDS, NATS_NKEY or NATS_TOKEN",
] as const;

program
  .command("apply")
  .description("create or update the streams, consumers and schedules of an app on the server")
  .argument("<module>", moduleArgument)
  .option(...serverOption, process.env.NATS_URL)
  .action((file: string, options: { server?: string }) =>
    session("apply", file, options, async (connection, definitions) => {
      await apply(connection, definitions, (applied) => console.log(lineOf(applied)));
    }),
  );

program
  .command("breaker")
  .description("look at the circuit breaker of a consumer, open it or close it")
  .argument("<module>", moduleArgument)
  .argument("<consumer>", "its name, or stream/name where several streams have one of that name")
  .option("--trip <duration>", 'open it for so long, such as "10m": no handler is started meanwhile')
  .option("--reset", "close it, whatever has failed")
  .option(...serverOption, process.env.NATS_URL)
  .action((file: string, name: string, options: { server?: string; trip?: string; reset?: boolean }) =>
    session("breaker", file, options, async (connection, { consumers }) => {
      const named = consumers.filter((one) => one.name === name || `${one.stream.name}/${one.name}` === name);
      const [consumer, another] = named;
      if (!consumer || another || (options.trip !== undefined && options.reset)) {
        const known = consumers.map((one) => `${one.stream.name}/${one.name}`).join(", ");
        const wrong =
          consumer && !another
            ? "either --trip or --reset, got both"
            : `one consumer of ${file} (${known}), got "${name}"`;
        throw new SortieError("invalid-option", `Expected ${wrong}`);
      }
      const { trip, reset } = options;
      const look = reset ? resetBreaker : readBreaker;
      const status =
        trip === undefined
          ? look(connection, consumer)
          : tripBreaker(connection, consumer, toMs(trip as Duration, "--trip"));
      console.log(sentenceOf(await status));
    }),
  );

program
  .command("schedules")
  .description("list what waits to be released, look at one schedule, cancel it, or have it fire now")
  .argument("<module>", moduleArgument)
  .argument("[id]", "the schedule's")
  .option("--stream <name>", "of this stream only")
  .option("--prefix <text>", "only those whose id begins so")
  .option("--cancel", "it is not released")
  .option("--fire", "it is released now; one that comes again, once more")
  .option("--pause", "one that comes again does not until it is resumed")
  .option("--resume", "it goes on with its next time")
  .option(...serverOption, process.env.NATS_URL)
  .action((file: string, id: string | undefined, options: { server?: string } & SchedulesOptions) =>
    session("schedules", file, options, async (connection, { streams }) => {
      const schedules = createSchedules(connection, streams, { ms: 10_000 });
      for (const line of await lookAfter(schedules, id, options)) console.log(line);
    }),
  );

program
  .command("permissions")
  .description("print the least NATS permissions that the login of each function needs, and that of apply")
  .argument("<module>", moduleArgument)
  .option("--together", "one login for http, pull and release: on Workers they are one function")
  .option("--json", "as JSON")
  .option("--nsc", "as commands that add these users with nsc")
  .option("--server-version <version>", 'for this nats-server, such as "2.10" (default: for any)')
  .option("--server <url>", "for this server, whose version is looked up; login by NATS_CREDS or NATS_TOKEN")
  .action(async (file: string, options: PermissionsCommandOptions) => {
    const [definitions, version] = await Promise.all([definitionsIn(file), versionFor(options)]);
    console.log(show(planPermissions(definitions, { version, together: options.together }), options));
  });

function lineOf({ kind, name, action, changes }: Applied): string {
  const word = { create: "created", update: "updated", none: "unchanged", remove: "removed" }[action];
  return `${word.padEnd(9)}  ${kind.padEnd(8)}  ${name}${changes.map((change) => `\n             ${change}`).join("")}`;
}

function sentenceOf(status: BreakerStatus): string {
  if (status.state === "closed")
    return status.pausedUntil
      ? `closed; but the consumer is paused on the server until ${status.pausedUntil.toISOString()}, not by its breaker: nats consumer resume <stream> <consumer>`
      : "closed";
  const [since, until] = [status.since, status.until].map((date) => date.toISOString());
  if (status.state === "half-open") return `half-open: one message is being tried, until ${until}`;
  return `open since ${since}, one message is tried after ${until}: ${status.reason}`;
}

try {
  await program.parseAsync();
} catch (error) {
  console.error(error instanceof SortieError ? error.message : error);
  process.exit(1);
}
await new Promise<void>((resolve) => process.stdout.write("", () => resolve())); // a pipe takes its time
process.exit(0); // not held up by a peer that does not close
