#!/bin/bash
echo "hello from $(. /etc/os-release; echo $ID)"
