#!/usr/bin/env node
import { command, programName, runProgram } from './command.ts';
import { diff } from './diff.ts';
import { distribute } from './distribute.ts';
import { doctor } from './doctor.ts';
import { load } from './load.ts';
import { migrate } from './migrate.ts';
import { refresh } from './refresh.ts';
import { report } from './report.ts';

const program = command({
  name: programName,
  description:
    'Shows the purchase that turned each lead of a gym into a client, in two materialized views. DATABASE_URL names the Postgres database: postgres://… for a server, pglite:PATH for an embedded database in a folder.',
  settings: {},
  example: 'refresh --help',
})
  .addCommand(migrate)
  .addCommand(load)
  .addCommand(refresh)
  .addCommand(diff)
  .addCommand(doctor)
  .addCommand(report)
  .addCommand(distribute);

await runProgram(program);
