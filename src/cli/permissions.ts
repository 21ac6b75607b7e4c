import { SortieError } from "../errors.ts";
import { connectAndLogIn, disconnect } from "../nats/connection.ts";
import type { Login, Permission } from "../provision/permissions.ts";
import { connectMs, serverAt } from "./session.ts";

export interface PermissionsCommandOptions {
  readonly server?: string;
  readonly serverVersion?: string;
  readonly together?: boolean;
  readonly json?: boolean;
  readonly nsc?: boolean;
}

/** Which server the permissions are for, by its version: the one that is said, that of `--server`, or undefined for any. */
export async function versionFor({ server, serverVersion }: PermissionsCommandOptions): Promise<string | undefined> {
  if (serverVersion !== undefined && !/^\d+\.\d+(\.\d+)?$/.test(serverVersion))
    throw new SortieError("invalid-option", `Expected --server-version such as "2.10", got "${serverVersion}"`);
  if (serverVersion !== undefined || server === undefined) return serverVersion;
  const connection = await connectAndLogIn(serverAt(server, "permissions"), connectMs);
  disconnect(connection);
  return connection.info?.version;
}

/** The logins as they are wanted: a part of nats-server's configuration, commands for nsc, or JSON. */
export function show(logins: readonly Login[], { json = false, nsc = false }: PermissionsCommandOptions): string {
  if (json && nsc) throw new SortieError("invalid-option", "Expected either --json or --nsc, got both");
  if (json) return JSON.stringify({ users: logins.map(asJson) }, undefined, 2);
  return nsc ? logins.map(asCommand).join("\n") : asConfiguration(logins);
}

/** As nats-server has it, so that it can be pasted there; `nats-server` reads variables from its environment. */
function asConfiguration(logins: readonly Login[]): string {
  const variables = logins.map(({ user }) => `#   export ${passwordOf(user)}='"…"'`);
  const hint = "# The value of a variable is read as configuration: a password has quotation marks of its own.";
  return [hint, ...variables, "authorization {", "  users: [", ...logins.flatMap(userLines), "  ]", "}"].join("\n");
}

function userLines({ user, publish, subscribe }: Login): string[] {
  return [
    "    {",
    `      user: ${JSON.stringify(user)}`,
    `      password: $${passwordOf(user)}`,
    "      permissions: {",
    `        publish: { allow: [${listed(publish)}] }`,
    `        subscribe: { allow: [${listed(subscribe)}] }`,
    "      }",
    "    }",
  ];
}

/** The variable that nats-server reads a login's password from. */
function passwordOf(user: string): string {
  return `${user.replaceAll("-", "_").toUpperCase()}_PASSWORD`;
}

function listed(permissions: readonly Permission[]): string {
  const lines = grouped(permissions).flatMap(([why, subjects]) => [
    `          # ${why}`,
    ...subjects.map((subject) => `          ${JSON.stringify(subject)}`),
  ]);
  return ["", ...lines, "        "].join("\n");
}

function asCommand({ user, publish, subscribe }: Login): string {
  const flags = [
    ...publish.map(({ subject }) => `--allow-pub ${quoted(subject)}`),
    ...subscribe.map(({ subject }) => `--allow-sub ${quoted(subject)}`),
  ];
  return [`nsc add user --name ${user}`, ...flags].join(" \\\n  ");
}

/** For a shell, and for nsc, which takes what commas separate for several. */
function quoted(subject: string): string {
  const value = /[",]/.test(subject) ? `"${subject.replaceAll('"', '""')}"` : subject;
  return `'${value.replaceAll("'", "'\\''")}'`;
}

function asJson({ role, user, publish, subscribe }: Login) {
  const subjects = (permissions: readonly Permission[]) => permissions.map(({ subject }) => subject);
  return { role, user, publish: subjects(publish), subscribe: subjects(subscribe) };
}

/** Together what is for the same, where it comes first. */
function grouped(permissions: readonly Permission[]): [why: string, subjects: string[]][] {
  const groups = new Map<string, string[]>();
  for (const { subject, why } of permissions) groups.set(why, [...(groups.get(why) ?? []), subject]);
  return [...groups];
}
