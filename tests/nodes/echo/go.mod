module akocore.test/echo

go 1.25
